"""Kinds of inputs: containers, codecs, pictures, arrays, odd times, odd pixels, damage, refusals.

`GROUPS` has a row for each kind: how to make it, and what must come of it. scripts/odd_files.py
runs them and fills the table in docs/reading_and_writing.md.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from makers import (
    ALL,
    ALPHA,
    AV1,
    B_FRAMES,
    HEVC,
    KEYS,
    MPEG2,
    MPEG4,
    PHONE_TIMES,
    STILL,
    UNEVEN,
    VP9,
    X264,
    Kind,
    array,
    content,
    copied,
    cut,
    damaged,
    deep_video,
    depth,
    film,
    hdr,
    hourly,
    joined,
    lossy,
    named,
    nearest,
    open_cut,
    phone,
    pickled,
    picture,
    pictures,
    pipe,
    preview,
    remuxed,
    song,
    stack,
    streams,
    table,
    tar_of_two,
    tone,
    turned,
    uneven,
    video,
    with_cover,
)
from videos import later

VIDEOS = [
    video("mp4, H.264", "a.mp4", X264),
    video("mp4, H.264 with B-frames", "a.mp4", B_FRAMES),
    video("mp4, H.264, fragmented", "a.mp4", f"{X264} -movflags frag_keyframe+empty_moov"),
    video("mp4, HEVC", "a.mp4", HEVC),
    video("mp4, AV1", "a.mp4", AV1),
    video("mp4, VP9", "a.mp4", VP9),
    video("mp4, MPEG-4", "a.mp4", MPEG4),
    video("mov, ProRes 422, 10 bits", "a.mov", "-c:v prores_ks"),
    video(
        "mov, DNxHR", "a.mov", "-c:v dnxhd -profile:v dnxhr_hq -pix_fmt yuv422p", size=(256, 128)
    ),
    video("mov, CineForm", "a.mov", "-c:v cfhd -pix_fmt yuv422p10le"),
    video("mov, JPEG 2000", "a.mov", "-c:v jpeg2000"),
    video("mov, Motion JPEG", "a.mov", "-c:v mjpeg -q:v 2"),
    video("mkv, FFV1", "a.mkv", "-c:v ffv1"),
    video("mkv, HEVC, 10 bits 4:2:2", "a.mkv", f"-pix_fmt yuv422p10le {HEVC}"),
    video("mkv, VP8", "a.mkv", "-c:v libvpx -b:v 2M -deadline realtime"),
    video("webm, VP9", "a.webm", VP9),
    video(
        "webm, VP8 with hidden reference frames", "a.webm", "-c:v libvpx -auto-alt-ref 1 -b:v 2M"
    ),
    video("webm, AV1", "a.webm", AV1),
    video("webm, live: without index and length", "a.webm", f"{VP9} -live 1"),
    video("avi, MPEG-4 with B-frames", "a.avi", f"{MPEG4} -bf 2"),
    video("avi, H.264", "a.avi", X264),
    video("avi, Motion JPEG", "a.avi", "-c:v mjpeg -q:v 2"),
    video("avi, HuffYUV", "a.avi", "-c:v huffyuv"),
    video("avi, uncompressed", "a.avi", "-c:v rawvideo -pix_fmt bgr24"),
    video("ts, H.264", "a.ts", B_FRAMES),
    video("ts, HEVC", "a.ts", HEVC),
    video("m2ts, MPEG-2", "a.m2ts", f"{MPEG2} -bf 2"),
    video("mpg, MPEG-1", "a.mpg", "-c:v mpeg1video -q:v 2"),
    video("vob, MPEG-2", "a.vob", MPEG2),
    video("wmv, WMV 2", "a.wmv", "-c:v wmv2 -q:v 2"),
    video("asf, MS MPEG-4", "a.asf", "-c:v msmpeg4 -q:v 2"),
    video("flv, Sorenson H.263", "a.flv", "-c:v flv -q:v 2"),
    video("flv, H.264", "a.flv", B_FRAMES),
    video("ogv, Theora", "a.ogv", "-c:v libtheora -q:v 8"),
    video("3gp, H.263", "a.3gp", "-c:v h263 -q:v 2 -s 128x96"),
    video("mxf, MPEG-2", "a.mxf", MPEG2, fps="25"),
    video("rm, RealVideo", "a.rm", "-c:v rv20 -q:v 2"),
    video("nut, MPEG-4", "a.nut", MPEG4),
    video(
        "DV of PAL cameras",
        "a.dv",
        "-s 720x576 -aspect 4:3 -pix_fmt yuv420p",
        fps="25",
        count=6,
        note="is interlaced",
    ),
    video("y4m", "a.y4m", "-pix_fmt yuv420p"),
    video("gif", "a.gif", "", fps="25"),
    video(
        "4:4:4, odd width and height",
        "a.mp4",
        "-c:v libx264 -qp 0 -pix_fmt yuv444p",
        size=(129, 97),
    ),
    video("one frame", "a.mp4", X264, count=1),
    video("raw H.264", "a.h264", B_FRAMES, rate=Fraction(30)),
    video("raw HEVC", "a.hevc", HEVC),
    video("raw AV1 (OBU), which states no rate", "a.obu", AV1, rate=Fraction(25)),
    video("raw MPEG-2", "a.m2v", MPEG2),
    video("IVF, VP9", "a.ivf", VP9),
    Kind("mp4 under a name that ends in .txt", named("a.txt")),
    Kind("name of 250 bytes", named(f"{'ö' * 123}.mp4")),
    Kind("name with %, :, spaces", named("%03d http: ü?.mp4")),
    Kind("name that is not UTF-8", named(b"latin\xfc.mp4")),
]
STREAMS = [
    Kind("two video streams", streams("a.mkv"), note="has 2 video streams, the first is read"),
    Kind("two video streams, `--video-stream 1`", streams("a.mp4"), range(20),
         note="number 1 is read", options={"video_stream": 1}),
    Kind("two video streams, `--video-stream 2`", streams("a.mkv"), options={"video_stream": 2},
         error="video_stream=2: expected 0 to 1"),
    Kind("sound before the video", copied(
        "-i IN -f lavfi -i sine=d=1 -map 1 -map 0 -c:a aac", name="a.mkv")),
    Kind("cover picture before the video", with_cover),
    Kind("tar sample of two videos", tar_of_two, is_set=True),
    Kind("parquet table with videos inside", table(is_embedded=True), is_set=True),
    Kind("parquet table with paths of videos", table(is_embedded=False), is_set=True),
]  # fmt: skip
PICTURES = [
    *(Kind(f"one picture: {name}", picture(f"a.{suffix}", **options), [STILL])
      for name, suffix, options in (
          ("PNG", "png", {}), ("JPEG, progressive", "jpg", {"progressive": True, "quality": 95}),
          ("JPEG, CMYK", "jpg", {"mode": "CMYK", "quality": 95}), ("WebP", "webp", {"quality": 95}),
          ("BMP", "bmp", {}), ("TIFF", "tif", {}), ("AVIF", "avif", {"quality": 90}),
          ("PNG of 1 bit", "png", {"mode": "1"}), ("PNG with a palette", "png", {"mode": "P"}),
          ("GIF", "gif", {}), ("PPM", "ppm", {}))),
    Kind("JPEG turned by its EXIF data", picture("a.jpg", turn=1, quality=95), [STILL]),
    Kind("JPEG with a preview inside (MPO)", preview("a.jpg", "MPO", quality=95), [STILL]),
    *(video(f"{codec.removeprefix('lib').upper()} pictures after each other", "pictures",
            f"-c:v {codec} -q:v 2 -f image2pipe", rate=Fraction(25))
      for codec in ("mjpeg", "png", "bmp", "ppm", "libwebp")),
    Kind("TIFF stack", stack("a.tif"), rate=Fraction(25)),
    Kind("TIFF stack, compressed", stack("a.tif", compression="tiff_lzw"), rate=Fraction(25)),
    Kind("TIFF with pages of two sizes", preview("a.tif", "TIFF"), [STILL],
         note="has 2 pages of several sizes, the first is read"),
    Kind("animated WebP", stack("a.webp", duration=40, quality=95), rate=Fraction(25)),
    Kind("animated AVIF", stack("a.avif", duration=40, quality=90), rate=Fraction(25)),
    Kind("animated PNG", stack("a.png", duration=40), rate=Fraction(25)),
    Kind("animated GIF of uneven times", stack("a.gif", range(4), duration=[100, 50, 200, 100]),
         range(4), seconds=[0, 0.1, 0.15, 0.35]),
    Kind("folder of pictures", pictures("frames"), rate=Fraction(25)),
    Kind("folder of pictures, `--fps 10`", pictures("frames", of="%d.bmp"), rate=Fraction(10),
         options={"fps": Fraction(10)}),
    Kind("`frame_%04d.png`", pictures("frames/frame_%04d.png", range(7, 30)), range(7, 30),
         rate=Fraction(25)),
    Kind("`frame_%04d.png` with a gap", pictures("frames/frame_%04d.png", [3, 4, 6]),
         error="frame_0005.png is missing between 3 and 6"),
    Kind("glob of pictures", pictures("frames/*.jpg", of="%d.jpg"), rate=Fraction(25)),
    Kind("folder without pictures or videos", pictures("frames", [], ".png"),
         error="is a folder, not a video file, and no picture is in it"),
]  # fmt: skip
ARRAYS = [
    Kind("npy, uint8 `[T, H, W, 3]`", array("a.npy"), rate=Fraction(25)),
    Kind("npy, `--fps 30000/1001`", array("a.npy"), rate=Fraction(30000, 1001),
         options={"fps": Fraction(30000, 1001)}),
    Kind("npz with other arrays beside it", array("a.npz", actions=np.zeros((30, 7))),
         rate=Fraction(25)),
    Kind("HDF5", array("a.h5"), rate=Fraction(25)),
    Kind("npy of floats", array("a.npy", "float32"),
         error="expected one array uint8 [T, H, W, 3] in it, found array float32 [30, 96, 128, 3]"),
    Kind("npz with two such arrays", array("a.npz", left=np.zeros((2, 3, 4, 3), np.uint8)),
         error="expected one array uint8 [T, H, W, 3] in it, found video uint8"),
    Kind("npy of pickled objects", pickled, error="not a readable array"),
]  # fmt: skip
TIMES = [
    video("29.97 frames/s", "a.mp4", X264, fps="30000/1001"),
    video("23.976 frames/s in mkv (times in ms)", "a.mkv", X264, fps="24000/1001"),
    video("12.5 frames/s", "a.mkv", X264, fps="25/2"),
    video("240 frames/s", "a.mp4", X264, fps="240"),
    video("240 frames/s in mkv (times in ms)", "a.mkv", X264, fps="240"),
    *(Kind(f"variable rate, {suffix}", uneven(f"a.{suffix}"), seconds=[t / 1000 for t in UNEVEN])
      for suffix in ("mp4", "mkv", "mov", "ts")),
    Kind("variable rate, `--fps 10`", uneven("a.mkv"), [nearest(n / 10) for n in range(16)],
         seconds=[n / 10 for n in range(16)], options={"fps": Fraction(10)}),
    Kind("phone: HEVC, 10 bits, HLG, turned, at a variable rate, with AAC", phone,
         seconds=PHONE_TIMES, note="HLG HDR is tone-mapped to SDR"),
    Kind("a pause of 50 s", remuxed("a.mkv", later(50, 15)),
         seconds=[n / 30 + 50 * (n >= 15) for n in ALL]),
    *(Kind(f"the clock jumps by {seconds:,} s, {suffix}",
           remuxed(f"a.{suffix}", later(seconds, 15)), note=f"time stamps jump by {seconds}")
      for suffix, seconds in (("mkv", 100_000), ("mp4", 3600), ("ts", 7200))),
    Kind("the clock jumps by 100,000 s, `--fps 10`", remuxed("a.mkv", later(100_000, 15)),
         range(0, 30, 3), note="time stamps jump by 100000", options={"fps": Fraction(10)}),
    Kind("two recordings in one ts: the clock goes back", joined("a.ts", {}, {}), [*ALL, *ALL],
         seconds=[n / 30 for n in range(60)], note="time stamps jump by -0.967 s before frame 30"),
    Kind("two recordings in one mpg: the clock goes back", joined("a.mpg", {}, {}), [*ALL, *ALL],
         seconds=[n / 30 for n in range(60)], note="time stamps jump by -0.967 s before frame 30"),
    *(Kind(f"wall-clock time stamps, {suffix}", remuxed(f"a.{suffix}", later(1_700_000_000)))
      for suffix in ("mkv", "mp4")),
    Kind("the clock of a ts wraps around (33 bits)", remuxed("a.ts", later(2**33 / 90000 - 0.5))),
    Kind("one frame an hour", remuxed("a.mkv", hourly), rate=Fraction(1, 3600)),
    *(Kind(f"lost key frame, {suffix}", lossy(f"a.{suffix}"), [n for n in ALL if n != 15])
      for suffix in ("mp4", "mkv", "avi", "ts")),
    Kind("lost key frame, `--fps 30`", lossy("a.mp4"), [n - (n == 15) for n in ALL],
         seconds=[n / 30 for n in ALL], options={"fps": Fraction(30)}),
    Kind("lost key frame, `--start 0.9`", lossy("a.mkv"), range(27, 30),
         options={"start_seconds": 0.9}),
    Kind("cut at 0.5 s without re-encoding (edit list)", copied("-ss 0.5 -i IN"), range(15, 30)),
    Kind("edit list that starts at 5 s", copied("-itsoffset 5 -i IN")),
    Kind("cut at an open group of pictures", open_cut, range(10, 30)),
    video("one key frame in 300 frames", "a.mp4", f"{X264} -g 1000", count=300),
    Kind("`--start 17/30 --duration 17/30` in 6 digits", lambda folder: film(folder, num_frames=60),
         range(17, 34), options={"start_seconds": 0.566667, "duration_seconds": 0.566667}),
    Kind("`--start-frame 17 --frames 17`", lambda folder: film(folder, num_frames=60),
         range(17, 34), options={"start_frame": 17, "num_frames": 17}),
]  # fmt: skip
PIXELS = [
    *(Kind(f"turned by {degrees} degrees", turned(-degrees, filters))
      for degrees, filters in ((90, "transpose=2"), (180, "hflip,vflip"), (-90, "transpose=1"))),
    video("pixels of 4:3", "a.mp4", f"-vf setsar=4/3 {X264}", size=(96, 96)),
    video("10 bits, H.264", "a.mp4", "-c:v libx264 -qp 0 -pix_fmt yuv420p10le"),
    video("12 bits, HEVC", "a.mkv", f"-pix_fmt yuv420p12le {HEVC}"),
    video("full range", "a.mp4", f"-vf scale=out_range=pc {X264} -color_range pc"),
    video("RGB, H.264", "a.mp4", "-c:v libx264rgb -qp 0"),
    video("gray, 8 bits", "a.mkv", "-c:v ffv1 -pix_fmt gray"),
    video("palette, avi", "a.avi", "-c:v msrle -pix_fmt pal8"),
    hdr("smpte2084"), hdr("arib-std-b67"),
    Kind("HDR, `--no-tone-map`", hdr("smpte2084").make, options={"tone_map": False},
         error="PQ HDR video, refused without `tone_map`"),
    video("interlaced", "a.mpg", f"-vf setfield=tff -flags +ildct+ilme {MPEG2}", 
          note="is interlaced: `deinterlace` makes whole frames"),
    video("interlaced, `--deinterlace`", "a.mpg", f"-vf setfield=tff -flags +ildct+ilme {MPEG2}",
          note="is interlaced: was deinterlaced", options={"deinterlace": True}),
    *(video(f"transparent, {name}", file, f"{ALPHA},format={pixels} {codec}", fps=fps)
      for name, file, pixels, codec, fps in (
          ("mov, Animation", "a.mov", "argb", "-c:v qtrle", "30"),
          ("mov, ProRes 4444", "a.mov", "yuva444p10le", "-c:v prores_ks", "30"),
          ("webm, VP9", "a.webm", "yuva420p", "-c:v libvpx-vp9 -cpu-used 8 -crf 10", "30"),
          ("animated PNG", "a.png", "rgba", "-f apng", "25"))),
    Kind("the size changes midway", joined("a.ts", {}, {"width": 160}), [*ALL, *ALL],
         seconds=[n / 30 for n in range(60)], note="the size changes to 160x96 at frame 30"),
    Kind("16-bit gray PNG", depth("a.png", "uint16", 200), error="more than 8 bits hold"),
    Kind("16-bit gray PNG, `--depth-range 0,50000`", depth("a.png", "uint16", 200), [STILL],
         options={"depth_range": (0, 50000)}),
    Kind("TIFF pictures one after another",
         lambda folder: film(folder, "a.tiff", "-c:v tiff -f image2pipe"),
         error="TIFF pictures one after another cannot be split"),
    Kind("10-bit gray video", lambda folder: film(folder, "a.mkv", "-c:v ffv1 -pix_fmt gray10le"),
         error="a video of gray10le values"),
    Kind("float TIFF", depth("a.tif", "float32", 1 / 255), error="give `depth_range` LO,HI"),
    Kind("float TIFF, `--depth-range 0,1`", depth("a.tif", "float32", 1 / 255), [STILL],
         options={"depth_range": (0, 1)}),
    Kind("16-bit gray video", deep_video, error="a video of gray16le values"),
    Kind("16-bit gray video, `--depth-range 0,65535`", deep_video,
         options={"depth_range": (0, 65535)}),
]  # fmt: skip
DAMAGE = [
    Kind("cut file: mp4 with its index at the end", cut("a.mp4", X264, 0.7),
         error="cut short: it ends before its index (moov atom not found)"),
    *(Kind(f"cut file: {name}", cut(file, arguments, 0.6), error="frames could be read")
      for name, file, arguments in (
          ("mp4 with its index at the start", "a.mp4", f"{KEYS} -movflags +faststart"),
          ("mkv", "a.mkv", KEYS), ("webm", "a.webm", VP9))),
    Kind("cut PNG", cut("a.png", "-frames:v 1", 0.5), error="damaged picture"),
    Kind("noise in a packet", damaged(), error="damaged or cut short: 20 frames could be read"),
    Kind("noise in a packet, `--on-damage skip`", damaged(), [*range(20), *range(25, 30)],
         note="damaged frames are left out", options={"on_damage": "skip"}),
    Kind("noise in a packet, `--on-damage stop`", damaged(), range(20), note="ends early",
         options={"on_damage": "stop"}),
    Kind("noise in a packet after the part", damaged(), range(15), options={"num_frames": 15}),
]  # fmt: skip
REFUSED = [
    Kind("file that is not there", lambda folder: folder / "a.mp4", error="no such file"),
    Kind("empty file", content("a.mp4", b""), error="empty file (0 bytes)"),
    Kind("text file", content("a.mp4", b"no video\n" * 500), error="not a video file"),
    Kind("web page instead of a video", content("a.mp4", b"<!DOCTYPE html><title>404</title>" * 9),
         error="not a video file"),
    Kind("zeros", content("a.mp4", bytes(50_000)), error="not a video file"),
    Kind("noise", content("a.mkv", np.random.default_rng(0).bytes(50_000)), error="not a"),
    Kind("sound alone", tone, error="no video stream (audio only)"),
    Kind("song with a cover picture", song, error="no video stream (audio with a cover picture)"),
    Kind("named pipe", pipe, error="is not a regular file; save the stream to a file first"),
]  # fmt: skip
STANDARD_STREAMS = [
    Kind("mp4 from a pipe", film, command='cat {} | "$@" -'),
    *(video(f"{codec.upper()} pictures from a pipe", "pictures",
            f"-c:v {codec} -q:v 2 -f image2pipe", rate=Fraction(25), command='cat {} | "$@" -')
      for codec in ("mjpeg", "png", "bmp")),
    Kind("`/dev/stdin`, a file", film, command='"$@" /dev/stdin < {}'),
    Kind("`/dev/stdin`, a pipe", film, command='cat {} | "$@" /dev/stdin'),
    Kind("closed standard input", film, command='"$@" {} 0<&-'),
    Kind("closed standard output", film, command='"$@" {} 1>&-'),
    Kind("closed standard error", film, command='"$@" {} 2>&-'),
    Kind("all three closed", film, command='"$@" {} 0<&- 1>&- 2>&-'),
]  # fmt: skip
GROUPS = {
    "Video files": VIDEOS,
    "Streams and tables": STREAMS,
    "Pictures": PICTURES,
    "Arrays": ARRAYS,
    "Times": TIMES,
    "Pixels": PIXELS,
    "Damage": DAMAGE,
    "Refused": REFUSED,
    "Standard streams": STANDARD_STREAMS,
}


def page_table() -> str:
    """Format the tables of the page, one for each group."""
    parts = []
    for group, kinds in GROUPS.items():
        lines = [f"### {group}", "", "| input | frames | note or error |", "|---|---|---|"]
        for kind in kinds:
            remark = (kind.error or kind.note).replace("|", "\\|")
            lines.append(f"| {kind.name} | {frames_text(kind)} | {remark} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def frames_text(kind: Kind) -> str:
    """Describe the frames that must come of an input."""
    if kind.error:
        return "error"
    count = len(kind.numbers)
    if count == 1:
        return "1"
    return f"{count} at their times" if kind.seconds else f"{count} at {kind.rate}/s"
