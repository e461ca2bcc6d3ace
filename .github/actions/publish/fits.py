"""Whether this runner has the disk and the memory that a plan asks for, said before anything is downloaded."""

import json
import sys
from pathlib import Path

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.needs import Needs, check_fits
from mopeq_hub.report.summary import needs_line

needs = Needs(**json.loads(Path(sys.argv[1]).read_text("utf-8"))["needs"])
print(needs_line(needs))
try:
    check_fits(needs, workplace.home())
except MopeqError as error:
    sys.exit(f"error: {error}")
