"""`vtok encode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vtok.cli import options as opt
from vtok.cli.completion import one_of
from vtok.cli.console import loading
from vtok.cli.jobs import STREAM, IsDone, Work, check_jobs, plan, run_jobs, with_listed
from vtok.cli.options import expand_options, option
from vtok.errors import UsageError

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.decoder_process import Decoder

SUFFIXES = {
    "vtok": ".vtok",
    "npy": ".npy",
    "tokens": ".tokens.safetensors",
    "safetensors": ".safetensors",
    "pt": ".pt",
}
Format = Annotated[
    str | None,
    option(
        "--to",
        "FORMAT",
        "vtok, npy, safetensors, pt or tokens. [default: by the suffix of -o, else vtok]",
        one_of(*SUFFIXES),
    ),
]
AsVideo = Annotated[
    bool, option("--as-video", None, "Read each folder or glob of pictures as one video.")
]
NumTokens = Annotated[
    int | None,
    option(
        "--num-tokens",
        "S",
        "Learned tokens per latent step, 1 to 64; --to vtok writes them quantized. "
        "[default: 8 with --to tokens]",
    ),
]


@expand_options
def encode(
    inputs: opt.VideosOrLists = None,
    *,
    output: opt.Output = None,
    as_video: AsVideo = False,
    files_from: opt.FilesFrom = None,
    null: opt.Null = False,
    to: Format = None,
    rate: opt.RateOptions,
    num_tokens: NumTokens = None,
    token_learner: opt.TokenLearner = None,
    part: opt.PartOptions,
    reading: opt.ReadingOptions,
    audio: Annotated[
        str | None,
        option(
            "--audio",
            "MODE",
            "copy or none: the compressed sound of the video. [default: copy to .vtok files]",
            one_of("copy", "none"),
        ),
    ] = None,
    no_audio: opt.NoAudio = False,
    model: opt.ModelOptions,
    timeout_seconds: opt.Timeout = 60.0,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    printing: opt.PrintOptions,
) -> None:
    """Encode videos to code files.

    Each output is written next to its input unless -o is given.

    \b
      vtok encode clip.mp4                         writes clip.vtok
      vtok encode clip.mp4 --bits 18 -o small.vtok
      vtok encode clip.mp4 --min-psnr 28           more bits where needed
      vtok encode clip.mp4 --bits 18 --effort 8    better pictures, slower
      vtok encode clip.mp4 --start 60 --duration 5 --fps 10 --size 256
      vtok encode videos/ -o codes/ --size 256     a folder, with sub-folders
      vtok encode 'raw/*.mkv' -o codes/ --to npy   arrays [K, t, h, w]
      vtok encode frames/ --fps 24                 pictures as a video
      vtok encode 'frames/*.png' --as-video --fps 24 -o clip.vtok
      vtok encode clip.mp4 --no-audio              without its sound
      vtok encode clip.mp4 --to tokens             8 learned tokens per step
      vtok encode clip.mp4 --num-tokens 8          quantized: a very low rate
      vtok encode - < clip.mp4 > clip.vtok
      find videos -name '*.mp4' -print0 | vtok encode --files-from - -0 --json
    """
    to = to or _format_of(output)
    if to not in SUFFIXES:
        raise UsageError(f"--to {to}: expected one of {', '.join(SUFFIXES)}")
    by_tokens = to == "tokens" or num_tokens is not None
    if token_learner is not None and not by_tokens:
        raise UsageError("--token-learner: needs --to tokens or --num-tokens")
    if by_tokens and to not in ("tokens", "vtok"):
        raise UsageError(f"--to {to}: --num-tokens needs --to tokens or --to vtok")
    if no_audio and audio == "copy":
        raise UsageError("--audio copy and --no-audio exclude each other")
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.decoder_process import Decoder
    from vtok.video.suffixes import VIDEO_SUFFIXES

    jobs = plan(
        with_listed(inputs, files_from, null), output, SUFFIXES[to], VIDEO_SUFFIXES, as_video
    )
    check_jobs(jobs, printing, overwrite=overwrite, skip_existing=skip_existing)
    options = EncodeOptions(
        to="vtok" if to == "tokens" else to,
        **part.to_fields(),
        **reading.to_fields(),
        **vars(rate),
        audio="none" if no_audio else audio,
        overwrite=overwrite or skip_existing,  # outputs that are not up to date are replaced
        timeout_seconds=timeout_seconds,
    )
    with Decoder() as decoder:
        if not skip_existing and jobs[0].source != STREAM:
            expect_video(Path(jobs[0].source), options, decoder)
        with loading(quiet=printing.quiet):
            loaded = model.load()
            if by_tokens:
                work, is_done = _token_work(
                    loaded, options, num_tokens, token_learner, to == "tokens", decoder
                )
            else:
                work, is_done = _code_work(loaded, options, decoder)
        run_jobs(jobs, work, printing, is_done if skip_existing else None)


def expect_video(source: Path, options: EncodeOptions, decoder: Decoder) -> None:
    """Start decoding a video before torch is imported, as `open_reader` will request it."""
    from vtok.video.reader import make_request

    if source.is_file():  # `open_reader` raises the error for anything else
        request = make_request(source, options.part, options.fps, options.size, options.reading)
        decoder.expect(request)


def _code_work(
    model: LoadedTokenizer, options: EncodeOptions, decoder: Decoder
) -> tuple[Work, IsDone]:
    from vtok.pipeline.encode import encode_file, stages_of_model
    from vtok.pipeline.inspect import is_encoded

    stages_of_model(model, options)  # one usage error, not one per input

    def work(source: Any, target: Any, progress: Any) -> Any:
        return encode_file(
            source, target, model=model, options=options, progress=progress, decoder=decoder
        )

    return work, lambda made, source: is_encoded(made, source, model, options)


def _token_work(
    model: LoadedTokenizer,
    options: EncodeOptions,
    num_tokens: int | None,
    learner: str | None,
    as_floats: bool,
    decoder: Decoder,
) -> tuple[Work, IsDone]:
    from vtok.tokens.encode import (
        are_tokens_encoded,
        check_token_options,
        encode_token_codes_file,
        encode_tokens_file,
    )
    from vtok.tokens.model import DEFAULT_LEARNER, DEFAULT_TOKENS, load_token_model

    check_token_options(options, as_floats=as_floats)
    loaded = load_token_model(learner or DEFAULT_LEARNER, model=model)
    count = DEFAULT_TOKENS if num_tokens is None else num_tokens
    loaded.check_count(count)
    encode = encode_tokens_file if as_floats else encode_token_codes_file

    def work(source: Any, target: Any, progress: Any) -> Any:
        return encode(
            source,
            target,
            model=loaded,
            num_tokens=count,
            options=options,
            progress=progress,
            decoder=decoder,
        )

    return work, lambda made, source: are_tokens_encoded(made, source, loaded, count, options)


def _format_of(output: str | None) -> str:
    """Format of an output by its suffix; `vtok` for any other suffix."""
    name = Path(output or "").name.lower()
    return next((to for to, usual in SUFFIXES.items() if name.endswith(usual)), "vtok")
