"""Result files, subtitles and pictures."""
