"""Suffixes by which folders are searched for videos and photos."""

from __future__ import annotations

_VIDEO = """
mp4 m4v mov qt mkv mk3d webm avi divx ts mts m2ts m2t mpg mpeg mpe m1v m2v mpv vob wmv asf flv f4v
ogv ogm 3gp 3g2 mxf rm rmvb dv nut ivf y4m obu h264 264 avc h265 265 hevc mjpeg mjpg gif apng
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO.split())
PHOTO_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
