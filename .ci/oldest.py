"Print every lower bound that settings.ini claims as a pin: `pip install -c <(python .ci/oldest.py) -e '.[dev]'`."
import re
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
for key in ("requirements", "lab_requirements", "tutorials_requirements"):
    for requirement in config["DEFAULT"][key].split():
        name, bound = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
        print(f"{name}=={bound}")
