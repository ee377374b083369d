"""Data: resizing, LMDBs and folders of images, their preparation and check, and the demo's photos."""
from udl_plugin.autoload import install

install()  # so that basicsr can be imported after us without the start-up line too
