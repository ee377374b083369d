"""Comparisons: of trainings, a matrix of them from one yml (studies), and of networks that are there."""
from udl_plugin.autoload import install

install()  # so that basicsr can be imported by what is in here without the start-up line too
