"""Buttons that open a page on Colab or Binder and lead to its source, as soon as the repository's address is known.

The address stands in pyproject.toml alone, so _config.yml cannot name it.
"""

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


def setup(app):
    app.connect("config-inited", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
