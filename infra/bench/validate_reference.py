#!/usr/bin/env python3
"""Validate clickstream records the way the Python reference system does, and time it.

This is the yardstick for functions/validate: the rules of the reference written
down plainly, with the standard library's json (whose parser and printer are C).
A record is parsed, checked against the schema that it carries, given its verdict
and printed again. Left out on purpose are Kafka, Flink, logging, and, unless asked
for, the two filters that parse each verdict once more to split valid from invalid,
so that the number is a lower bound of what the reference costs.

    validate_reference.py RECORDS             print {"records", "bytes", "cpu_seconds", ...}
    validate_reference.py RECORDS --filters   the same, with the two filters
    validate_reference.py RECORDS --verdicts  print one line a record: VALID or the error

RECORDS holds one record a line. CPU seconds are those of this process for the loop
alone: reading the file and starting Python do not count.
"""

import argparse
import json
import sys
import time
from datetime import datetime, timezone

ZONED_FORMATS = (
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S.%f%z",
    "%Y-%m-%d %H:%M:%S%z",
)
EVENT_TYPES = ("view", "cart", "purchase", "remove_from_cart")


def has_type(value, field):
    kind = field["type"]
    if value is None:
        return (isinstance(kind, list) and "null" in kind) or bool(field.get("optional"))
    if isinstance(kind, list):
        kind = next((member for member in kind if member != "null"), None)
    logical = field.get("name", "")
    if logical.startswith("io.debezium.time"):
        kind = logical
    if kind == "string":
        return isinstance(value, str)
    if kind in ("int64", "long"):
        return isinstance(value, int)
    if kind == "double":
        return isinstance(value, (int, float))
    if kind == "boolean":
        return isinstance(value, bool)
    if kind in ("io.debezium.time.MicroTimestamp", "io.debezium.time.Timestamp"):
        return isinstance(value, int) and value >= 0
    if kind == "io.debezium.time.ZonedTimestamp":
        if not isinstance(value, str):
            return False
        for text in ZONED_FORMATS:
            try:
                datetime.strptime(value, text)
                return True
            except ValueError:
                pass
        return False
    return True


def first_error(schema, payload):
    for field in schema["fields"]:
        name = field.get("field") or field["name"]
        if name not in payload:
            if field.get("optional"):
                continue
            return f"Field {name} is required"
        value = payload[name]
        if not has_type(value, field):
            return f"Field {name} has invalid type"
        if name == "price" and value is not None and value <= 0:
            return "Price should be greater than 0"
        if name == "event_type" and value not in EVENT_TYPES:
            return "Event type should be one of: " + ", ".join(EVENT_TYPES)
    return None


def now():
    return datetime.now(timezone.utc).replace(tzinfo=None).isoformat()


def verdict(text):
    """Return the verdict envelope as text, and the error or None."""
    try:
        record = json.loads(text)
        error = first_error(record["schema"], record["payload"])
        if error is None:
            record.update(valid="VALID", error_message=None, error_type=None, metadata={"processed_at": now()})
        else:
            record.update(valid="INVALID", error_message=error, error_type="SCHEMA_VALIDATION_ERROR", metadata={})
    except Exception as exception:  # as the reference does: whatever it is, it becomes a verdict
        error = f"Processing error: {exception}"
        record = {"raw_data": text, "valid": "INVALID", "error_message": error,
                  "error_type": "PROCESSING_ERROR", "metadata": {"processed_at": now()}}
    return json.dumps(record), error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records")
    parser.add_argument("--verdicts", action="store_true")
    parser.add_argument("--filters", action="store_true")
    args = parser.parse_args()
    with open(args.records, encoding="utf-8", newline="\n") as file:
        records = file.read().splitlines()
    if args.verdicts:
        sys.stdout.writelines((verdict(text)[1] or "VALID") + "\n" for text in records)
        return
    for text in records[:1000]:
        verdict(text)
    size = valid = passed = 0
    start = time.process_time()
    for text in records:
        body, error = verdict(text)
        if args.filters:
            for kind in ("VALID", "INVALID"):
                passed += json.loads(body)["valid"] == kind
        size += len(body)
        valid += error is None
    spent = time.process_time() - start
    print(json.dumps({"records": len(records), "bytes": size, "valid": valid, "cpu_seconds": spent,
                      "python": sys.version.split()[0]}))


if __name__ == "__main__":
    main()
