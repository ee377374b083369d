"""Options. The life of an option: `yaml_loader` reads it with its line, `schema` knows its type, `completion` adds what
BasicSR derives from it, and `cross_checks.validate_options` checks it against the other options, the data and the
checkpoints. What is wrong with it is an `OptionError`: the path of its key and a message."""
import udl_plugin.archs  # noqa: F401 (first: it registers all classes, UDLModel included, which imports our modules)
