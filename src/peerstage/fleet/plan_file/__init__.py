"""Plans in TOML: read one, with every mistake named by its key, and write a first one."""

from peerstage.fleet.plan_file.read import DEFAULT_PLAN, parse_plan, read_plan

__all__ = ["DEFAULT_PLAN", "parse_plan", "read_plan"]
