"""Video files to frames and back; the only package that calls decord, imageio and ffmpeg."""
