"""Data: LMDB pairs, their check, and the demo's photos."""
from udl_plugin.autoload import install

install()  # so that basicsr can be imported here without the start-up line too
