"""The decisions of the verdict as shards: one for every site, grouping and correction, which pay for each other when gathered."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from unmask.analysis.crosstalk import Causal
from unmask.analysis.examination import Settings
from unmask.analysis.site_map import Planned, SiteData, SiteFinding, decide_at, pay, plan
from unmask.analysis.threads import one_thread
from unmask.stage import Inputs, Make, Shard, Told, Work
from unmask.stages.verdict.causal import read_causal
from unmask.stages.verdict.findings import read_finding, write_finding
from unmask.stages.verdict.material import Material
from unmask.store import ActivationStore
from unmask.study import Workspace

GROUPINGS = ("dimension", "facet")


def deciding_work(
    inputs: Inputs,
    workspace: Workspace,
    *,
    primary: str,
    settings: Settings,
    seed: int,
    load: Callable[[], Material],
) -> Work:
    """A shard is a decision: one file with its finding. The material is loaded with the first, and needs no scores."""
    planned = plan(
        ActivationStore.open(inputs.folders["activations"]).sites,
        GROUPINGS,
        primary=primary,
        control=bool(ActivationStore.open(inputs.folders["control_activations"]).shards),
    )
    places = {f"{each.grouping}-{each.correction}-{each.site}": each for each in planned}
    shards = tuple(Shard(name, 1, (workspace.batches / f"{name}.safetensors",)) for name in places)

    @contextmanager
    def opened() -> Generator[Make]:
        deciding = _Deciding(load(), settings, seed, read_causal(inputs).outcomes, primary)

        def make(shard: Shard, told: Told) -> None:
            with one_thread():  # sums must not depend on how many there are
                finding = deciding.decide(places[shard.name])
            write_finding(shard.files[0], finding)
            told(1)

        yield make

    return Work("testing", shards, opened, unread=("scores",))


def decided(shards: Iterable[Shard], *, rebuild: str) -> list[SiteFinding]:
    """The findings of all shards, with the multiplicity over sites paid for."""
    return pay([read_finding(shard.files[0], rebuild=rebuild) for shard in shards])


@dataclass(slots=True)
class _Deciding:
    """What decisions are made from. The last site's arrays are kept: the next decision is most often on the same."""

    material: Material
    settings: Settings
    seed: int
    causal: Mapping[str, Causal]
    primary: str
    _held: tuple[str, SiteData] | None = field(default=None)

    def decide(self, planned: Planned) -> SiteFinding:
        questions = self.material.questions
        return decide_at(
            planned,
            self._data(planned.site),
            questions[planned.grouping].to_numpy(),
            polarity_N=questions["polarity"].to_numpy(),
            causal=self.causal.get(planned.grouping) if planned.site == self.primary else None,
            seed=self.seed,
            settings=self.settings,
        )

    def _data(self, site: str) -> SiteData:
        if self._held is None or self._held[0] != site:
            self._held = None  # two sites at once may not fit
            self._held = site, self.material.load(site)
        return self._held[1]
