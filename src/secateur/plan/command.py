"""`secateur plan`: what a run would do and take, from the model's configuration alone."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from transformers import PreTrainedConfig

from ..architecture.experts.lora import family_names_apart
from ..architecture.families import family_of
from ..architecture.layout import WHOLE_KINDS, LayerShape, common_shape
from ..architecture.stock import accepts
from ..architecture.units import Units
from ..checkpoint.streaming import FILE_BYTES
from ..config.formats import width_words
from ..config.options import part_of
from ..config.pruning import ScoringOptions
from ..config.run import load_in_words
from ..config.sizes import parse_bytes
from ..config.speed import PlanConfig
from ..criteria import CRITERIA
from ..criteria.base import scored_members
from ..models.adapter import starting_from_adapter
from ..models.devices import device_of, dtype_of, name_of
from ..models.loading import load_config
from ..models.original import check_quantisable
from ..models.source import resolve_model
from ..models.stored import checkpoint_dtype
from ..pruning.allocation.depth import layer_words
from ..pruning.budget import Budget
from ..pruning.compensation.cost import refit_bytes, second_moment_bytes
from ..pruning.compensation.single import NEEDS
from ..pruning.search.cost import search_bytes
from ..system.machine.devices import check_quantises, total_bytes
from ..system.output import check_output_file
from ..system.records import write_json
from ..training.flops import forward_products
from ..training.prepare import PlannedBudget, lora_names, plan_budget
from .fleet import fleet_record, not_sharded
from .footprint import Footprint, base_dtype, export_bytes, training_footprint
from .speed import planned_time
from .text import plan_text
from .timing import time_record, units_gone


def plan(config: PlanConfig) -> str:
    """Work out the plan, write the JSON record if asked, and return it as text.

    Raises:
        InputError: an option that would end the run too; a sparsity that cannot be reached.
    """
    device, dtype = device_of(config), dtype_of(config)
    check_quantises(device, config.load_in)
    config = starting_from_adapter(config)
    criterion = CRITERIA[config.criterion]
    scoring = criterion.options(config.criterion, part_of(ScoringOptions, config))
    if config.json:
        inputs = {"--model": config.model, "--adapter": config.adapter}
        check_output_file("--json", Path(config.json), overwrite=True, inputs=inputs)
    available = parse_bytes(config.device_memory, "--device-memory") if config.device_memory else device_bytes(device)
    source = resolve_model(config.model)
    model_config = load_config(source, trust_remote_code=config.trust_remote_code, encoder_decoders=True)
    check_quantisable(config.load_in, source, model_config)
    planned = plan_budget(config, model_config)
    config = cast(PlanConfig, planned.config)
    budget, units = planned.budget, planned.budget.units
    linears = family_names_apart(config.targets, units.family) or lora_names(units.family)
    memory = training_footprint(
        model_config,
        linears=linears,
        rank=config.first_rank,
        micro_batch=config.batch_size // config.accumulation,
        seq_len=config.seq_len,
        dtype=dtype,
        device_type=device.type,
        gradient_checkpointing=config.gradient_checkpointing,
        trust_remote_code=config.trust_remote_code,
        load_in=config.load_in,
        scored=kept_gradients(units, scoring, criterion.needs),
        moments=moment_bytes(budget, criterion.needs, NEEDS[config.compensate]),
        distilled=bool(config.distill),
        trains=not config.untrained,
        family=units.family,
        also=config.also,
        restarts=bool(config.restart_lora),
        target_len=config.target_seq_len,
    )
    memory = with_cuts(memory, config, planned, dtype, device.type)
    memory = with_masks(memory, config, budget, dtype)
    time = time_record(config, budget, planned.sizes, scoring=scoring, targets=linears, dtype=dtype, device=device)
    itemsize = base_dtype(model_config, dtype, config.load_in).itemsize
    record: dict[str, Any] = {
        "model": config.model,
        "target": asdict(planned.target),
        "prunable_parameters": units.prunable_params,
        "sparsity": budget.sparsity,
        "units": layer_units(units),
        "ffn_widths": ffn_widths(budget, model_config),
        "layers": layer_words(budget),
        **planned_time(planned),
        "legal_kv_heads": legal_kv_heads(units, partial(_is_legal, config, model_config)),
        "before": size_of(planned, planned.dense_params, checkpoint_dtype(model_config), config.seq_len, {}),
        "after": size_of(planned, planned.params, checkpoint_dtype(model_config), config.seq_len, layers_gone(budget)),
        "memory": {**vars(memory), "total": memory.total, "device": device.type, "dtype": name_of(dtype)},
        "export": export_record(config, planned, memory, checkpoint_dtype(model_config)),
        "held": load_in_words(config.load_in, cuts=True) if config.load_in else None,
        "no_refit": planned.no_refit,
        "available_bytes": available,
        "devices": fleet_record(
            memory,
            devices=config.devices,
            largest_bytes=planned.sizes.largest_params * itemsize,
            whole_bytes=planned.sizes.whole_params * itemsize,
            gathers=config.accumulation * (3 if config.gradient_checkpointing else 2),
            available_bytes=available,
            refused=not_sharded(experts=units.family.experts is not None, quantised=config.load_in is not None),
            time=time,
            bandwidth=parse_bytes(config.link_bandwidth, "--link-bandwidth"),
        ),
        "time": time,
    }
    if config.json:
        write_json(Path(config.json), record, result=True)
    return plan_text(record)


def device_bytes(device: torch.device) -> int:
    """Memory of the GPU, or that of the machine that is not in use."""
    return total_bytes(device) or int(psutil.virtual_memory().available)


def kept_gradients(units: Units, scoring: ScoringOptions, needs: frozenset[str]) -> list[str]:
    """Paths of the linears whose weights' gradients stay on the device until the step is scored."""
    if "batch_weight_grad" not in needs or scoring.offload_gradients:
        return []
    return list(dict.fromkeys(member.linear for pool in units.pools for member in scored_members(pool, scoring)))


def moment_bytes(budget: Budget, scoring: frozenset[str], compensation: frozenset[str]) -> int:
    """Bytes of the second moments; compensation needs none of pools that lose nothing."""
    if "second_moments" in scoring:
        return second_moment_bytes(budget.units.pools)
    spared = budget.spared
    pools = [pool for pool in budget.units.pools if pool.name not in spared]
    return second_moment_bytes(pools) * ("second_moments" in compensation)


def with_cuts(
    memory: Footprint, config: PlanConfig, planned: PlannedBudget, dtype: torch.dtype, device_type: str
) -> Footprint:
    """The footprint with what a cut that refits in sequence takes, beyond the part of a step that is over by then, and
    with what a search holds, whose candidates take a step's part themselves."""
    tokens = -(-config.calibration_tokens // config.devices)
    if config.allocation == "search" and device_type == "cpu":
        memory = replace(memory, search=search_bytes(planned.sizes.head[0], tokens, dtype.itemsize))
    if config.compensate == "sequential":
        held = refit_bytes(planned.budget.units, planned.sizes.head[1], tokens, dtype.itemsize)
        over = memory.activations + memory.logits + memory.allocator + memory.search
        memory = replace(memory, refit=max(0, held - over))
    return memory


def with_masks(memory: Footprint, config: PlanConfig, budget: Budget, dtype: torch.dtype) -> Footprint:
    """The footprint with what learned masks are put on, as it is before them; with checkpointing, of one layer."""
    if (rule := CRITERIA[config.criterion].masks) is None:
        return memory
    layers: dict[int, int] = {}
    for pool in budget.units.pools:
        if pool.name not in budget.spared:
            sides = {(each.linear, each.dim): each.size for each in rule.places(pool)}
            layers[pool.layer] = layers.get(pool.layer, 0) + sum(sides.values())
    tokens = config.batch_size // config.accumulation * config.seq_len
    columns = max(layers.values(), default=0) if config.gradient_checkpointing else sum(layers.values())
    return replace(memory, masks=tokens * columns * dtype.itemsize)


def export_record(config: PlanConfig, planned: PlannedBudget, memory: Footprint, dtype: torch.dtype) -> dict[str, Any]:
    """Bytes that writing the result takes, as asked and streamed."""
    trained = (planned.params if config.shrinks else planned.dense_params) + memory.lora // 4
    streamed = memory.weights + memory.lora + FILE_BYTES
    whole = export_bytes(trained, planned.params, dtype)
    return {"bytes": streamed if config.stream_export else whole, "streamed_bytes": streamed}


def layer_units(units: Units) -> dict[str, dict[str, Any]]:
    """Kind -> how many units a layer has (least and most over the layers) and what one is worth."""
    kinds = dict.fromkeys(pool.kind for pool in units.pools)
    return {
        kind: {
            "layers": len(pools := units.of_kind(kind)),
            "units_per_layer": sorted({pool.size for pool in pools}),
            "parameters_per_unit": pools[0].unit_params,
        }
        for kind in kinds
    }


def ffn_widths(budget: Budget, model_config: PreTrainedConfig) -> dict[str, Any]:
    """What all FFN widths at the end are multiples of, and what engines quantise of them."""
    step = budget.ffn_step
    return {"multiple_of": step, "words": width_words(step, model_config.get_text_config().hidden_size)}


def legal_kv_heads(units: Units, legal: Callable[[LayerShape], bool]) -> list[int]:
    """KV heads that a stock checkpoint with equal layers can have, in the proportion to query heads that it has now."""
    if units.of_kind(*WHOLE_KINDS):
        return []
    shape = common_shape(units.shapes, units.family) or next(shape for shape in units.shapes if shape.heads)
    return [
        shape.kv_heads - gone for gone in range(shape.kv_heads) if not gone or legal(shape.without("kv_group", gone))
    ]


def size_of(
    planned: PlannedBudget, parameters: int, dtype: torch.dtype, seq_len: int, quota: Mapping[str, float]
) -> dict[str, int]:
    """Parameters, bytes on disk, and FLOPs of one forward pass of `seq_len` tokens through the decoder.

    Args:
        quota: units that are gone from each pool, as `forward_products` takes them.
    """
    return {
        "parameters": parameters,
        "bytes": parameters * dtype.itemsize,
        "decoder_flops": forward_products(planned.sizes, planned.budget.units, quota, seq_len),
    }


def layers_gone(budget: Budget) -> Mapping[str, float]:
    """Pool name -> units that are gone, as far as that is known; of layers the mean."""
    return units_gone(budget) if budget.units.of_kind(*WHOLE_KINDS) else budget.quota


def _is_legal(config: PlanConfig, model_config: PreTrainedConfig, shape: LayerShape) -> bool:
    family = family_of(model_config.model_type, config.family)
    return bool(accepts(model_config, family, shape, model_class=config.model_class))
