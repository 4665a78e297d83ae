"""What needs the repository's address, as soon as it is known: buttons that open a page on Colab or Binder and lead to its
source, and the address of the book itself, with a picture of each page for those who link to it.

The address stands in pyproject.toml alone, so _config.yml cannot name it.
"""

import re

from csglib.runs.release import repository


def add(app, config):
    if address := repository():
        config.html_theme_options |= {
            "repository_url": address,
            "repository_provider": "github",
            "repository_branch": "main",
            "path_to_docs": "book",
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {
                "colab_url": "https://colab.research.google.com",
                "binderhub_url": "https://mybinder.org",
                "notebook_interface": "jupyterlab",
            },
        }
        if hosted := re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+?)/?", address):
            owner, name = hosted.groups()
            config.ogp_site_url = f"https://{owner.lower()}.github.io/{name}/"  # where publish.yml puts it
            config.ogp_social_cards = {"line_color": "#0072b2"}


def setup(app):
    app.connect("config-inited", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
