"""Writes the dashboard: `python deploy/grafana/make_dashboard.py`. The panels are the table below; Grafana's JSON is made from it.

A test compares the file with what this makes, another one its metrics with the server's, and `make verify-deploy` runs every query.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent / "dashboards" / "llm.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SERVERS = '{instance=~"$instance"}'  # the menu at the top of the page chooses among them
WIDTH = 24  # columns of Grafana's grid
BAD, GOOD = "red", "green"


@dataclass(frozen=True)
class Panel:
    """A panel: what it is called, what it tells, and its queries with the words of the legend.

    Attributes:
        kind: timeseries, stat or table.
        unit: Grafana's name of it; a stat turns red from `limit` on.
    """

    title: str
    text: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    limit: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


def rate(metric: str, labels: str = "", by: str = "") -> str:
    """Events a second, of all servers together."""
    chosen = f'{{instance=~"$instance"{"," if labels else ""}{labels}}}'
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{chosen}[$__rate_interval]))"


def quantile(share: float, metric: str) -> str:
    """The value that a share of the observations stays below."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', by='le')})"


def quantiles(metric: str) -> dict[str, str]:
    return {f"p{round(100 * share)}": quantile(share, metric) for share in (0.5, 0.95)}


def mean(metric: str) -> str:
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


def total(metric: str) -> str:
    return f"sum({metric}{SERVERS})"


CALLS, FAILED = 'route=~"/v1/.+"', 'route=~"/v1/.+",status=~"5.."'
ERRORS = f"({rate('llm_http_requests_total', FAILED)} or vector(0)) / {rate('llm_http_requests_total', CALLS)}"
TOKENS = rate("llm_generation_tokens_total")
LEGEND = "{{model}}, step {{step}}, validation loss {{val_loss}}"

ROWS: dict[str, list[Panel]] = {
    "Now": [
        Panel(
            "Ready", "1 when a model answers. If not, /readyz says why.", {"": f"min(llm_ready{SERVERS})"},
            kind="stat", width=3, options={"mappings": {"0": ("not ready", BAD), "1": ("ready", GOOD)}},
        ),
        Panel("Errors", "Share of the requests that were answered with 5xx.", {"": ERRORS}, "percentunit", "stat", 3, 0.05),
        Panel(
            "First token, p95", "95 of 100 callers wait less.",
            {"": quantile(0.95, "llm_time_to_first_token_seconds")}, "s", "stat", 4, 5,
        ),
        Panel(
            "Line", "How full it is; beyond 100 % callers get 429.",
            {"": f"max(llm_num_requests_waiting{SERVERS} / llm_max_waiting{SERVERS})"}, "percentunit", "stat", 3, 0.8,
        ),
        Panel("Tokens a second", "Written by all servers together.", {"": TOKENS}, "short", "stat", 3),
        Panel(
            "Model", "What answers: the run, its step and loss.", {LEGEND: f"llm_model_info{SERVERS}"},
            kind="stat", width=8, options={"text": "name"},
        ),
    ],
    "Requests": [
        Panel(
            "Requests a second, by status", "429: refused, as the line is full or the caller too fast. 5xx: our fault.",
            {"{{status}}": rate("llm_http_requests_total", CALLS, "status")}, "reqps",
        ),
        Panel(
            "Texts a second, by how they ended", "cancelled: the caller left. deadline: LLM_REQUEST_TIMEOUT was over. error: see the log.",
            {"{{finished_reason}}": rate("llm_request_success_total", by="finished_reason")}, "reqps",
        ),
        Panel(
            "In line and running", "Who finds no free slot waits in line. When the line is full too, callers get 429.",
            {
                "in line": total("llm_num_requests_waiting"), "running": total("llm_num_requests_running"),
                "slots": total("llm_slots"), "most in line": total("llm_max_waiting"),
            },
        ),
    ],
    "How long it takes": [
        Panel(
            "To the first token", "From a request's arrival, the time in line included.",
            quantiles("llm_time_to_first_token_seconds"), "s", width=6,
        ),
        Panel(
            "Between tokens", "What a reader of a stream feels.", quantiles("llm_inter_token_latency_seconds"), "s", width=6,
        ),
        Panel("A whole request", "From its arrival to its last token.", quantiles("llm_e2e_request_latency_seconds"), "s", width=6),
        Panel(
            "Its parts, on average", "In line: too many requests. Reading: long prompts. Writing: long texts, or many at once.",
            {
                "in line": mean("llm_request_queue_time_seconds"), "reading": mean("llm_request_prefill_time_seconds"),
                "writing": mean("llm_request_decode_time_seconds"),
            }, "s", width=6,
        ),
    ],
    "The engine": [
        Panel(
            "Tokens a second", "Cached: read before, so that they cost nothing.",
            {
                "written": TOKENS, "read": rate("llm_prompt_tokens_total"),
                "of these cached": rate("llm_prompt_tokens_cached_total"),
            },
        ),
        Panel(
            "Cache in use", "Share of keys and values that running requests fill.",
            {"{{instance}}": f"llm_kv_cache_usage_ratio{SERVERS}"}, "percentunit",
        ),
        Panel("Tokens in line", "Of the prompts that wait to be read.", {"{{instance}}": f"llm_waiting_tokens{SERVERS}"}),
        Panel(
            "Memory bandwidth in use", "Bytes that the steps read, as a share of what the machine reads at best. Near 100 % it can go no faster.",
            {"{{instance}}": f"rate(llm_memory_read_bytes_total{SERVERS}[$__rate_interval]) / llm_memory_read_limit_bytes_per_second{SERVERS}"},
            "percentunit",
        ),
        Panel(
            "Time at work", "Share of the time in which the engine makes steps; the rest it waits for requests.",
            {"{{instance}}": f"rate(llm_engine_busy_seconds_total{SERVERS}[$__rate_interval])"}, "percentunit",
        ),
        Panel(
            "Tokens a step", "How many texts share a reading of the weights.",
            {"tokens": f"{TOKENS} / {rate('llm_engine_steps_total')}"},
        ),
    ],
    "The process": [
        Panel("Memory", "Resident.", {"{{instance}}": f"process_resident_memory_bytes{SERVERS}"}, "bytes", width=6),
        Panel("Processors", "Cores in use.", {"{{instance}}": f"rate(process_cpu_seconds_total{SERVERS}[$__rate_interval])"}, width=6),
        Panel(
            "Open files and connections", "", {"open": total("process_open_fds"), "limit": total("process_max_fds")}, width=6
        ),
        Panel(
            "Up for", "Since the process started.", {"{{instance}}": f"time() - process_start_time_seconds{SERVERS}"}, "s", width=6
        ),
        Panel("Models", "", {"": f"llm_model_info{SERVERS}"}, kind="table", width=16),
        Panel("Builds", "", {"": f"llm_build_info{SERVERS}"}, kind="table", width=8),
    ],
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana reads it."""
    return {
        "uid": "llm",
        "title": "Language model server",
        "tags": ["llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one cross hair in all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": menus()},
        "panels": placed(),
    }


def menus() -> list[dict[str, Any]]:
    """What can be chosen at the top: the Prometheus, and the servers."""
    chosen = {"text": "All", "value": "$__all"}
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    servers = {
        "name": "instance", "label": "Server", "type": "query", "datasource": SOURCE, "refresh": 2, "multi": True,
        "query": {"query": "label_values(llm_ready, instance)", "refId": "servers"}, "includeAll": True, "allValue": ".*",
        "current": chosen,
    }  # fmt: skip
    return [source, servers]


def placed() -> list[dict[str, Any]]:
    """The panels under the headings of their rows, each with its place on the grid."""
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        found.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y = 0, y + 1
        height = 4 if title == "Now" else 8
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            found.append(as_json(panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": height}})
            x += panel.width
        y += height
    return [each | {"id": number} for number, each in enumerate(found, 1)]


def as_json(panel: Panel) -> dict[str, Any]:
    """A panel without its place."""
    table = panel.kind == "table"
    targets = [
        {"refId": chr(65 + number), "datasource": SOURCE, "expr": query, "legendFormat": legend or "__auto", "instant": table or panel.kind == "stat"}
        | ({"format": "table"} if table else {})
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
    tidy = {"transformations": [{"id": "organize", "options": {"excludeByName": hidden}}]} if table else {}
    looks = {"type": panel.kind, "title": panel.title, "description": panel.text, "datasource": SOURCE}
    return looks | {"targets": targets, "fieldConfig": {"defaults": defaults(panel), "overrides": []}, "options": options(panel)} | tidy


def defaults(panel: Panel) -> dict[str, Any]:
    """Unit, colours and lines."""
    found: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        found |= {"min": 0, "custom": {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"}}
    steps = [{"color": GOOD, "value": None}] + ([] if panel.limit is None else [{"color": BAD, "value": panel.limit}])
    found["thresholds"] = {"mode": "absolute", "steps": steps}
    words = panel.options.get("mappings", {})
    found["mappings"] = [
        {"type": "value", "options": {value: {"text": text, "color": color, "index": number}}}
        for number, (value, (text, color)) in enumerate(words.items())
    ]
    return found


def options(panel: Panel) -> dict[str, Any]:
    """What a kind of panel wants to know besides."""
    if panel.kind == "stat":
        newest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": newest, "colorMode": "value", "graphMode": "none", "textMode": panel.options.get("text", "value")}
    if panel.kind == "table":
        return {"showHeader": True}
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"wrote {FILE}")
