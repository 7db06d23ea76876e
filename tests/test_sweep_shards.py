"""Decisions over the sites as shards: a finding comes back from its file to the last bit, and kills cost nothing that is made."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planted_study import LAYERS, PRIMARY, World
from unmask.analysis import nulls
from unmask.analysis.site_map import Planned, SiteData, SiteFinding, decide_at, plan
from unmask.artifact import listing, write_tensors
from unmask.errors import ArtifactError
from unmask.stage import Inputs
from unmask.stages import verdict
from unmask.stages.verdict import VerdictConfig, decisions, findings
from unmask.stages.verdict.findings import read_finding, write_finding
from unmask.stages.verdict.material import load_material
from unmask.study import Workspace

CONFIG = VerdictConfig(flips=99, resamples=100, planted_runs=20, planted_effects=(1.0,))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return World(tmp_path_factory.mktemp("verdict")).verdict_inputs()


@pytest.fixture(scope="module")
def whole(inputs: Inputs) -> Workspace:
    """The verdict by one process; its findings are left in `batches`."""
    workspace = Workspace(inputs.study_folder / "whole")
    workspace.prepare()
    verdict.run(CONFIG, inputs, workspace)
    return workspace


@pytest.fixture(scope="module")
def finding(inputs: Inputs) -> SiteFinding:
    """The primary site's, in full, as it is before it has been in a file."""
    material = load_material(inputs)
    return decide_at(
        Planned(PRIMARY, "dimension", "control", full=True),
        material.load(PRIMARY),
        material.questions["dimension"].to_numpy(),
        polarity_N=None,
        causal="undetermined",
        seed=0,
        settings=CONFIG.settings,
    )


def exact(value: Any) -> Any:
    """What tells two values apart: types, bits, order, shapes."""
    if is_dataclass(value):
        return type(value), [(field.name, exact(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        return dict, [(exact(key), exact(each)) for key, each in value.items()]
    if isinstance(value, (tuple, list)):
        return type(value), [exact(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, float):
        return float, struct.pack(">d", value)
    return type(value), value


def odd(finding: SiteFinding) -> SiteFinding:
    """The same with values that a careless file would lose."""
    payload = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    numbers = {
        "last first": float("nan"), "a": -0.0, "infinite": float("inf"), "less": float("-inf"), "none": None, "one": 1.0,
        "payload": payload, "small": 5e-324, "NumPy's": np.float64(-0.0), "NumPy's NaN": np.float64("nan"),
    }  # fmt: skip
    shared = replace(
        finding.directions[0],
        name="é\u2028\"'\\\0",
        vector_D=np.zeros((0, 3), dtype=np.float32).T,
        loadings_N=np.asfortranarray(np.array([[payload, -0.0], [np.inf, 1e-320]]))[::-1],
        questions=np.int64(3),
    )
    decision = finding.decision
    examined = replace(decision.examined, rho_adj=np.float32(0.1), eta_adj=2)
    decision = replace(
        decision,
        numbers=numbers,
        examined=examined,
        dropped={},
        origin=None,
        ruling=replace(decision.ruling, qualifier=None, reasons=()),
        sensitivity=(replace(decision.sensitivity[0], rejected=np.bool_(True)),),
    )
    return replace(
        finding,
        decision=decision,
        directions=(shared,),
        first_rank=nulls.Tested(1.5, np.array([True])),
        p_adj_max_t=payload,
    )


def test_a_finding_comes_back_to_the_last_bit(finding: SiteFinding, tmp_path: Path) -> None:
    assert finding.decision.planted is not None
    assert finding.decision.origin is not None
    data = SiteData(np.ones((4, 2)), np.ones((4, 2)))
    untestable = decide_at(
        Planned("late", "facet", "none", full=False), data, np.array(list("aaab")), polarity_N=None, causal=None, seed=0,
        settings=CONFIG.settings,
    )  # fmt: skip
    assert untestable.decision.examined is None
    for number, each in enumerate((finding, odd(finding), untestable)):
        write_finding(tmp_path / f"{number}.safetensors", each)
        assert exact(read_finding(tmp_path / f"{number}.safetensors", rebuild="")) == exact(each)
    assert exact(odd(finding)) != exact(finding)


def test_the_same_finding_is_the_same_file(finding: SiteFinding, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_finding(tmp_path / name, odd(finding))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_rank_max_t": "0.5"},
        {"p_rank_max_t": True},
        {"directions": []},
        {"correction": "both"},
        {"first_rank": nulls.Tested(1.0, np.array(0.5))},
        {"first_rank": object()},
    ],
)
def test_what_the_annotations_do_not_allow_is_not_written(finding: SiteFinding, wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="stands where"):
        write_finding(tmp_path / "file", replace(finding, **wrong))
    assert list(tmp_path.iterdir()) == []


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-7],
        lambda data: b"",
        lambda data: flipped(data, len(data) - 2),
        lambda data: flipped(data, data.index(b"p_rank_max_t") + 1),
        lambda data: data.replace(b'"F64"', b'"I64"', 1),
        lambda data: data.replace(b"undetermined", b"cross-talk!!", 1),
        lambda data: b"PAR1" + data,
    ],
)
def test_a_damaged_file_is_refused(finding: SiteFinding, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "dimension-none-x.safetensors"
    write_finding(path, finding)
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    assert path.read_bytes() != sound
    with pytest.raises(ArtifactError, match=rf"{re.escape(str(path))}.*Delete it.*`REBUILD`"):
        read_finding(path, rebuild="REBUILD")


def test_a_file_of_something_else_is_refused(
    finding: SiteFinding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a right checksum, too: what is made of a file is a finding, or nothing."""
    tensors = {"0": np.zeros(3)}
    write_tensors(tmp_path / "bare", tensors)
    write_tensors(tmp_path / "list", tensors, provenance={"finding": [], "digest": findings._digest([], tensors)})
    packed: dict[str, Any] = {}
    monkeypatch.setattr(findings, "_digest", lambda content, tensors: packed.update(content) or "the same")
    write_finding(tmp_path / "sound", finding)
    others = {
        "lacks": {name: each for name, each in packed.items() if name != "site"},
        "more": packed | {"__class__": "os.system"},
        "tensor": packed | {"first_rank": {"statistic": {"scalar": "9999"}, "null_B": "0"}},
        "number": packed | {"p_rank_max_t": {"float": "00"}},
        "text": packed | {"site": 3},
        "choice": packed | {"correction": "both"},
        "shape": packed | {"directions": {"0": "1"}},
        "none": packed | {"decision": None},
    }
    for name, content in others.items():
        write_tensors(tmp_path / name, tensors, provenance={"finding": content, "digest": "the same"})
    for name in ("bare", "list", *others):
        with pytest.raises(ArtifactError, match="is no finding of the verdict"):
            read_finding(tmp_path / name, rebuild="")


def test_shards_are_named_after_what_they_decide(inputs: Inputs, whole: Workspace) -> None:
    work = verdict.work(CONFIG, inputs, Workspace(inputs.study_folder / "nothing"))
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in LAYERS]
    planned = plan(sites, ("dimension", "facet"), primary=PRIMARY, control=True)
    assert [shard.name for shard in work.shards] == [f"{p.grouping}-{p.correction}-{p.site}" for p in planned]
    assert [(p.site, p.grouping) for p in planned if p.full] == [(PRIMARY, "dimension")] * 2
    assert [shard.made for shard in work.shards] == [False] * 8
    assert len(list(whole.batches.iterdir())) == 8


def test_decisions_made_in_any_order_and_after_kills_have_the_bytes_of_one_run(
    inputs: Inputs, whole: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes make some, a third is killed twice, and no decision is made again."""
    workspace = Workspace(inputs.study_folder / "shards")
    workspace.prepare()
    unscored = {name: folder for name, folder in inputs.folders.items() if name != "scores"}
    processes = [verdict.work(CONFIG, replace(inputs, folders=unscored), workspace) for _ in range(2)]
    assert [process.unread for process in processes] == [("scores",)] * 2
    shards = list(processes[0].shards)
    random.Random(0).shuffle(shards)
    for number, shard in enumerate(shards[:3]):
        processes[number % 2].make(shard)
    made: list[Planned] = []
    kills = {1, 3}

    def killed_at_times(planned: Planned, *arguments: Any, **options: Any) -> SiteFinding:
        if len(made) in kills:
            kills.remove(len(made))
            raise KeyboardInterrupt
        made.append(planned)
        return decide_at(planned, *arguments, **options)

    monkeypatch.setattr(decisions, "decide_at", killed_at_times)
    for left in (4, 2):
        with pytest.raises(KeyboardInterrupt):
            verdict.run(CONFIG, inputs, workspace)
        assert len(processes[0].waiting()) == left
    verdict.run(CONFIG, inputs, workspace)
    assert len(made) == 5
    assert len(set(made)) == 5
    assert listing(workspace.batches) == listing(whole.batches)
    assert listing(workspace.out) == listing(whole.out)


def test_a_damaged_finding_stops_the_gathering_and_is_mended_alone(
    inputs: Inputs, whole: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(whole.out)
    (path,) = whole.batches.glob(f"facet-control-{PRIMARY}*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{path.name}.*unmask run .* --force verdict"):
        verdict.run(CONFIG, inputs, whole)
    path.unlink()
    verdict.run(CONFIG, inputs, whole)
    assert listing(whole.out) == before
