"""The sentences and tables around the filter atlas, with the numbers of its runs."""

from collections import Counter

import pandas as pd
from IPython.display import Markdown

from csgbook.evidence.verdicts import schedule
from csgbook.explorers.atlas import TOP, Atlas, Wall
from csgbook.pages.tables import markdown

BY = {"CSG": "gate", "PICNN": "most probable class", "ICNN": "largest mean peak of its maps"}  # else its mean activation


def odd(wall: Wall) -> tuple[int, int]:
    """How many filters tell most about another class, and how many have an image of another class among their top six."""
    return sum(f.disagrees for f in wall.filters), sum(f.foreign > 0 for f in wall.filters)


def answer(atlas: Atlas) -> Markdown:
    """Of the first network, in a sentence."""
    wall = atlas.walls[0]
    tells, shows = odd(wall)
    head = "Mostly, not always. " if 0 < tells + shows < len(wall.filters) / 2 else ""
    return Markdown(
        f"{head}Of the {len(wall.filters)} filters of {wall.name} (seed {wall.run.recipe.seed}) {tells} tell most about "
        f"another class than the one that they belong to, and {shows} have an image of another class among the {TOP} that "
        "excite them most."
    )


def summary(atlas: Atlas) -> Markdown:
    """Their schedule, and one row per network."""
    rows = []
    after = " or ".join(dict.fromkeys(schedule(wall.run.recipe) for wall in atlas.walls))
    for wall in atlas.walls:
        tells, shows = odd(wall)
        best = max(wall.filters, key=lambda f: max(f.information))
        rows.append(
            {
                "network": wall.name,
                "class by": BY.get(wall.name, "mean activation"),
                "tells most about another class": f"{tells} of {len(wall.filters)}",
                f"another class in the top {TOP}": f"{shows} of {len(wall.filters)}",
                "most information, nats": f"{max(best.information):.4f}, on {best.tells}, filter {best.filter}",
            }
        )
    return Markdown(f"The networks after {after}:\n\n{markdown(pd.DataFrame(rows)).data}")


def disagreeing(wall: Wall, classes: tuple[str, ...]) -> Markdown:
    """The filters that tell most about another class, with the information about both."""
    rows = [
        {
            "filter": str(f.filter),
            "belongs to": f.of,
            "nats about it": f"{f.information[classes.index(f.of)]:.4f}",
            "tells most about": f.tells,
            "nats about that": f"{f.information[classes.index(f.tells)]:.4f}",
        }
        for f in wall.filters
        if f.disagrees
    ]
    return markdown(pd.DataFrame(rows)) if rows else Markdown(f"{wall.name} has no such filter.")


def shares(atlas: Atlas) -> Markdown:
    """Filters per class, one row per network."""
    counts = [Counter(f.of for f in wall.filters) for wall in atlas.walls]
    rows = [[wall.name, *(str(c[name]) for name in atlas.classes)] for wall, c in zip(atlas.walls, counts, strict=True)]
    return markdown(pd.DataFrame(rows, columns=["network", *atlas.classes]))


def repeated(wall: Wall, most: int = 3) -> Markdown:
    """The images that are the most exciting one of several filters."""
    owners: dict[int, list[str]] = {}
    for f in wall.filters:
        owners.setdefault(f.images[0], []).append(f.of)
    told = [
        f"image {image} of {len(of)} filters, {'all of class ' + of[0] if len(set(of)) == 1 else f'of {len(set(of))} classes'}"
        for image, of in sorted(owners.items(), key=lambda item: -len(item[1]))[:most]
    ]
    return Markdown(
        f"The {len(wall.filters)} filters of {wall.name} have {len(owners)} images in first place: {'; '.join(told)}. "
        "How alike filters of one class are is measured in {doc}`filter-correlation`."
    )
