"""Names of containers: the grammar, and names for those who get none. Pure; used in the daemon only."""

from __future__ import annotations

import random
import re

from tare.errors import Invalid

__all__ = ["check", "suggest"]

ALLOWED = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
MAX_NAME = 255
"""Docker has no bound; a name becomes a file name and a host name in places (NAME_MAX)."""
_NAME = re.compile(ALLOWED + "+", re.ASCII)

# Own lists: calm adjectives, and people who built, measured, weighed or healed something.
_ADJECTIVES = (
    "able agile airy amber ample apt artful awake balmy bold brave breezy brisk bright calm candid careful cheery "
    "civil clean clear clever cosy crisp curious dapper deft direct earnest easy even fair fluent fresh frugal gentle "
    "glad golden handy hardy honest humble jolly keen kind light limber lively loyal lucid mellow merry mild modest "
    "neat nimble noble patient placid plucky polite prompt proud quick quiet ready robust rosy serene sharp silent "
    "simple sleek smooth snug sober solid spry steady stout sunny swift tender tidy trim trusty upbeat vivid warm "
    "witty young zesty"
).split()
_SURNAMES = (
    "abel ampere apgar banach bernoulli bessel birkhoff blackwell boole borlaug braille brahe breguet brunel cannon "
    "cantor carnot cassini celsius chladni church coulomb daguerre davy dedekind descartes dirac eckert eiffel erdos "
    "faraday fermat fizeau fleming foucault fourier frege fresnel fuchs galois gauss gilbreth gutenberg halley harvey "
    "heaviside helmholtz henry herschel hertz hilbert hollerith huygens jacquard jenner joule kepler klein lagrange "
    "landau laplace lavoisier leavitt leibniz lister lovasz mach maxwell mercator minkowski monge napier nobel noyce "
    "oersted ohm otis pacioli pappus pascal planck poisson ramon riemann riquet romer rontgen sabin semmelweis siemens "
    "snell steinmetz stevin telford tesla torricelli turgot vauban venn volta weber whitworth wiener yukawa zuse"
).split()


def check(name: str) -> str:
    """The name without its leading slash; Invalid with Docker's text if it breaks the grammar."""
    bare = name.removeprefix("/")
    if len(bare) > MAX_NAME or not _NAME.fullmatch(bare):
        raise Invalid(f"Invalid container name ({name}), only {ALLOWED} are allowed")
    return bare


def suggest(attempt: int) -> str:
    """An "adjective_surname"; from the second attempt on with a number behind it, as the plain ones run out."""
    name = f"{random.choice(_ADJECTIVES)}_{random.choice(_SURNAMES)}"
    return name if attempt == 0 else f"{name}{random.randrange(10 ** min(attempt, 6))}"
