"""By which suffixes videos and photos are found in folders."""

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mts", "m2ts"),
        *("mpg", "mpeg", "wmv", "flv", "ogv", "3gp", "gif"),
    )
)
PHOTO_SUFFIXES = frozenset(
    f".{name}" for name in ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff")
)
