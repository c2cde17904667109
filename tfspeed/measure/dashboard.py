"""TensorBoard as a dashboard: which charts it shows, in which order (its tab Custom Scalars)."""

# Title → charts, each a title and the tags that it shows (patterns), as `tensorboard.write_run`
# and others write them.
CHARTS = {
    "latency": [("to the first token, s", ["latency/ttft_s"]),
                ("each token after it, s", ["latency/tpot_s"]),
                ("a whole answer, s", ["latency/e2e_s"])],
    "throughput": [("decode, tokens/s", ["throughput/decode_tokens_per_s"]),
                   ("prefill, tokens/s", ["throughput/prefill_tokens_per_s"]),
                   ("output, tokens/s", ["throughput/output_tokens_per_s"]),
                   ("speed-up over the baseline", ["throughput/.*_speedup"])],
    "quality": [("perplexity", ["quality/perplexity"]),
                ("KL divergence, nats", ["quality/kl_divergence"]),
                ("same likeliest token", ["quality/top1_agreement"]),
                ("task accuracy", ["quality/task_accuracy"])],
    "energy": [("joules a token", ["energy/j_per_token_.*"])],
    "limits and memory": [("of the memory's limit", ["limit/roofline_fraction"]),
                          ("weights, bytes", ["memory/weights_bytes"]),
                          ("peak memory, bytes", ["memory/peak_rss_bytes"])],
    "operators of a step": [("seconds by kind of operator", ["profile/.*"])],
    "from RNN to Transformer": [
        ("training tokens/s over the window", ["evolution/training_tokens_per_s_by_length"]),
        ("decode tokens/s over the context", ["evolution/decode_tokens_per_s_by_context"]),
        ("loss over the steps", ["evolution/loss_by_step"])],
}
# Title, value, ends of its interval: shown in the category named first.
INTERVALS = [("quality", "perplexity over the baseline's, with its 95 % interval",
              "quality/perplexity_delta")]


def layout() -> bytes:
    """The summary that holds the layout, for `tf.summary.experimental.write_raw_pb`: every run
    carries it, and TensorBoard shows it once."""
    from tensorboard.plugins.custom_scalar import layout_pb2, summary

    categories = []
    for title, charts in CHARTS.items():
        made = [layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(
            tag=[f"^{tag}$" for tag in tags])) for name, tags in charts]
        made += [layout_pb2.Chart(title=name, margin=layout_pb2.MarginChartContent(series=[
            layout_pb2.MarginChartContent.Series(value=tag, lower=f"{tag}_low",
                                                 upper=f"{tag}_high")]))
            for of, name, tag in INTERVALS if of == title]
        categories.append(layout_pb2.Category(title=title, chart=made))
    return summary.pb(layout_pb2.Layout(category=categories)).SerializeToString()
