"""Video files to frames and back; the only package that uses decord, imageio and ffmpeg."""
