"""Sections of the configuration, a file for each.

To add `[name]`: a file here with the section as it is written (a struct whose fields have defaults), what it means (a
struct that the daemon uses) and `read_name(reader)`, which makes one of the other; then a field of `config.Config`, its
line in `config.load_config`, and its text in config.example.toml, which a test compares with the defaults.
"""
