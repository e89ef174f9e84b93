"""Configurations: what one holds (:class:`Config`), where its values come from (:func:`load`, :func:`load_run`),
how it is written down (:func:`to_yaml`), and, in :mod:`wholebatch.config.build`, what is built from it.
"""

from wholebatch.config.load import load as load
from wholebatch.config.load import load_run as load_run
from wholebatch.config.recipe import recipe_names as recipe_names
from wholebatch.config.schema import Config as Config
from wholebatch.config.show import to_yaml as to_yaml
