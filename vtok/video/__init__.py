"""Video files to frames and back; the only package that uses PyAV, Pillow, imageio and ffmpeg."""
