"""memprobe: where, depth by depth, a language model's memorised facts surface."""

__version__ = "0.1.0"
