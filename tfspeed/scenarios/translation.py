"""Translation: speech into English by Whisper, or text by any encoder–decoder or instruct model."""

from absl import flags as absl_flags

from tfspeed.errors import TfspeedError


def define_flags(shared: dict) -> None:
    absl_flags.DEFINE_string("pairs", None, "texts and their translations: a gettext catalogue "
                             "(.po), or `source<TAB>translation` lines; for --audio use "
                             "--transcripts", **shared)
    absl_flags.DEFINE_integer("sentences", 50, "pairs that are translated, spread evenly over the "
                              "file; 0: all", **shared)
    absl_flags.DEFINE_string("target_language", "German", "for instruct models and T5: name of the "
                             "language that --pairs are translated into", **shared)
    absl_flags.DEFINE_string("source_language", "English", "name of the language that they are in",
                             **shared)


def run(flags) -> int | None:
    from tfspeed.scenarios import job, translation_job

    job.positive(flags, "new_tokens")
    job.check_batch(flags)
    if bool(flags.audio) == bool(flags.pairs):
        raise TfspeedError("Translation needs either --audio, speech that becomes English, or "
                           "--pairs, texts.", audio=flags.audio, pairs=flags.pairs)
    if flags.sentences < 0:
        raise TfspeedError("--sentences must be 0 (all) or more.", sentences=flags.sentences)
    return translation_job.speech(flags) if flags.audio else translation_job.texts(flags)
