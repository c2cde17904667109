"""Rows as TensorBoard runs: scalars, a histogram of token gaps, HParams, the table as text."""

import os
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.measure import dashboard, pictures, profile, report

_SCALARS = {
    "latency/ttft_s": "ttft_s", "latency/tpot_s": "tpot_s", "latency/e2e_s": "e2e_s",
    "throughput/prefill_tokens_per_s": "prefill_tokens_per_s",
    "throughput/decode_tokens_per_s": "decode_tokens_per_s",
    "throughput/output_tokens_per_s": "output_tokens_per_s",
    "limit/achieved_gb_per_s": "achieved_gb_per_s",
    "limit/roofline_fraction": "roofline_fraction",
    "quality/perplexity": "perplexity", "quality/perplexity_delta": "perplexity_delta",
    "quality/kl_divergence": "kl_divergence", "quality/top1_agreement": "top1_agreement",
    "quality/task_accuracy": "task_accuracy", "quality/task_agreement": "task_agreement",
    "drafts/acceptance": "draft_acceptance", "drafts/share_of_passes": "draft_share",
    "drafts/tokens_per_pass": "tokens_per_pass",
    "memory/weights_bytes": "weights_bytes", "memory/peak_rss_bytes": "peak_rss_bytes",
    "start/load_s": "load_s", "start/compile_s": "compile_s",
}
_HPARAMS = ("model", "strategy", "engine", "dtype", "threads", "batch", "prompt_tokens",
            "new_tokens")
# What the runs can be sorted by: speed, then quality, then what they take.
_COLUMNS = ("throughput/decode_tokens_per_s", "throughput/tpot_speedup", "latency/tpot_s",
            "latency/ttft_s", "quality/perplexity", "quality/perplexity_delta",
            "quality/kl_divergence", "energy/j_per_token_rapl", "energy/j_per_token_nvml",
            "energy/j_per_token_estimate", "limit/roofline_fraction", "memory/peak_rss_bytes")


def check_logdir(logdir: str | Path) -> None:
    """Makes the folder, or says now, before anything slow, that it cannot be written."""
    try:
        Path(logdir).mkdir(parents=True, exist_ok=True)
        writable = os.access(logdir, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise TfspeedError("--logdir must be a folder that can be written.", logdir=str(logdir))


def run_name(row: dict) -> str:
    """A row's folder below the logdir: one run a configuration, the latest measurement wins."""
    parts = [row["model"], report.label(row), f"{row['engine']}-t{row['threads']}-b{row['batch']}"
             f"-p{row['prompt_tokens']}-n{row['new_tokens']}"]
    return "/".join("".join(c if c.isalnum() or c in "-_.+" else "_" for c in part)[:150]
                    for part in parts)


def write_run(logdir: str | Path, row: dict) -> Path:
    """Writes one row as one run; returns its folder."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api as hparams

    folder = Path(logdir) / run_name(row)
    try:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        with tf.device("CPU:0"), tf.summary.create_file_writer(str(folder)).as_default(step=0):
            hparams.hparams_config(
                hparams=[hparams.HParam(name) for name in _HPARAMS],
                metrics=[hparams.Metric(name, display_name=name.split("/")[1])
                         for name in _COLUMNS])
            hparams.hparams({name: row[name] for name in _HPARAMS}, trial_id=run_name(row))
            tf.summary.experimental.write_raw_pb(dashboard.layout(), step=0)
            for name, value in row.get("speedup", {}).items():
                if value:
                    tf.summary.scalar(f"throughput/{name}_speedup", value["ratio"])
            for tag, name in _SCALARS.items():
                value = row.get(name)
                value = value["median"] if isinstance(value, dict) else value
                if value is not None:
                    tf.summary.scalar(tag, value)
            if row.get("energy_j_per_token"):  # its source is in the name: an estimate is one
                tf.summary.scalar(f"energy/j_per_token_{row['energy_source']}",
                                  row["energy_j_per_token"])
            for group in ("predicted", "prediction_error"):
                for name, value in row.get(group, {}).items():
                    tf.summary.scalar(f"{group}/{name}", value)
            for name in ("perplexity_delta", "task_accuracy"):
                for end, value in row.get(f"{name}_interval", {}).items():
                    tf.summary.scalar(f"quality/{name}_{end}", value)
            if row.get("gate"):
                tf.summary.scalar("quality/max_perplexity_increase", row["gate"]["limit"])
                tf.summary.scalar("quality/gate_passed", int(row["gate"]["passed"]))
            if row.get("itl_s"):
                tf.summary.histogram("latency/itl_s", row["itl_s"]["samples"])
            tf.summary.text("table", report.markdown([row]))
            if row.get("profile"):
                tf.summary.text("profile", profile.markdown(row))
                for kind in row["profile"]["kinds"]:
                    tf.summary.scalar(f"profile/{kind['name']}_s", kind["seconds"])
                content = pictures.rendered(profile.painter(row), profile.SIZE)
                tf.summary.image("profile/operators", tf.io.decode_png(content, channels=3)[None])
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("TensorBoard's events cannot be written.", logdir=str(logdir),
                           cause=str(error)[-200:]) from error  # the reason stands last
    return folder
