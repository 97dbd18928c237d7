"""Video files to frames and frames to video files; the only place that meets decord and imageio."""
