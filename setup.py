"Install hessnb: every value is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

extras = {name: cfg[f"{name}_requirements"].split() for name in ("lab", "tutorials", "docs")}
extras["dev"] = cfg["dev_requirements"].split() + extras["lab"] + extras["tutorials"] + extras["docs"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3", "Topic :: Scientific/Engineering", "Typing :: Typed"],
    packages=[*find_packages(include=["hessnb", "hessnb.*"]), "hessnb.tutorials",
              "hessnb.tutorials.benchmarks"],
    package_dir={"hessnb.tutorials": "nbs", "hessnb.tutorials.benchmarks": "benchmarks"},  # what `hessnb lab` copies
    package_data={
        "hessnb": ["py.typed", "*.pyi", "**/*.js", "**/*.css", "**/*.html", "**/*.json", "**/*.safetensors"],
        "hessnb.tutorials": ["start.ipynb", "tutorials/*.ipynb", "recipes/*", "paper/*.ipynb", "results/*",
                             "images/*.png", "curvature/*.ipynb", "boundary/*.ipynb", "show/*.ipynb"],
        "hessnb.tutorials.benchmarks": ["*.py"],
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["hessnb=hessnb._modidx:d"]},
    zip_safe=False,
)
