"""A gate as JUnit XML, which GitLab, Jenkins, Azure and most others show: one test case a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as Xml


def to_junit(gated: Mapping[str, Any]) -> str:
    """The XML of a gate's JSON. What does not stand is a failure; notes and what is undecided go to `system-out`."""
    findings, seconds = gated["findings"], float(gated["seconds"])
    failures = sum(not row["stands"] for row in findings)
    counts = {"tests": str(len(findings)), "failures": str(failures), "errors": "0", "skipped": "0", "time": f"{seconds:.3f}"}
    suites = Xml.Element("testsuites", {"name": "quantkit gate", **counts})
    suite = Xml.SubElement(suites, "testsuite", {"name": gated["file"], **counts})
    for row in findings:
        time = f"{row['seconds']:.3f}"
        case = Xml.SubElement(suite, "testcase", {"classname": f"quantkit.gate.{gated['file']}", "name": row["condition"], "time": time})
        if not row["stands"]:
            failure = Xml.SubElement(case, "failure", {"type": row["decision"], "message": row["line"]})
            failure.text = row["line"]
        Xml.SubElement(case, "system-out").text = row["line"]
    Xml.SubElement(suite, "system-out").text = "\n".join([*gated["changes"], *gated["notes"]])
    Xml.indent(suites)
    return Xml.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
