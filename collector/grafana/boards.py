"""The dashboards: what is looked at, by whom, and the queries behind it."""

from __future__ import annotations

from typing import Final

from collector.grafana.model import (
    Dashboard,
    Variable,
    lines,
    log,
    loki,
    number,
    prometheus,
    ranking,
    row,
    states,
    table,
)

SERVICE: Final = Variable("service", "Service", "loki", "label_values(service_name)")
METRIC_SERVICE: Final = Variable(
    "service", "Service", "prometheus", "label_values(audit_records_emitted_total, service_name)"
)
HEALTH_SERVICE: Final = Variable(
    "service", "Service", "prometheus", "label_values(otel_audit_health_status, service_name)"
)

RECORDS: Final = '{service_name=~"$service"} | event_name != "audit.checkpoint"'
"""Checkpoints are the records' neighbours in Loki, and no activity."""
FAILURES: Final = RECORDS + ' | audit_outcome = "failure"'
LOGINS: Final = RECORDS + ' | audit_event_type = "authentication"'
CREDENTIALS: Final = RECORDS + ' | audit_event_type = "credential_access"'
SENSITIVE: Final = (
    RECORDS + ' | audit_event_type =~ "phi_access|data_export|data_deletion|consent_change"'
)
ADMIN: Final = RECORDS + ' | audit_event_type =~ "privilege_change|admin_action"'
APPLICATIONS: Final = 'service_name=~"$service"'
AUDIT: Final = 'receiver="otlp/audit"'
TO_LOKI: Final = 'exporter="otlp_http/loki"'


def per_second(selector: str, *by: str) -> str:
    """Count records a second, by labels."""
    return f"sum{_by(by)} (rate({selector} [$__auto]))"


def counted(selector: str, *by: str) -> str:
    """Count the records of the shown time, by labels."""
    return f"sum{_by(by)} (count_over_time({selector} [$__range]))"


def top(selector: str, *by: str) -> str:
    """Count the records of the shown time: the ten labels with most of them."""
    return f"topk(10, {counted(selector, *by)})"


def rate(counter: str, matchers: str, *by: str) -> str:
    """Count something a second, by labels."""
    return f"sum{_by(by)} (rate({counter}{{{matchers}}}[$__rate_interval]))"


def increase(counter: str, matchers: str = "") -> str:
    """Count something in the shown time; 0 where it never happened."""
    return f"sum(increase({counter}{{{matchers}}}[$__range])) or vector(0)"


def quantile(share: float, histogram: str, *by: str) -> str:
    """Return the value that this share of observations stays below."""
    inner = rate(histogram + "_bucket", APPLICATIONS, "le", *by)
    return f"histogram_quantile({share}, {inner})"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


OVERVIEW: Final = Dashboard(
    uid="otel-audit-overview",
    title="Audit overview",
    meaning="Who did what, and with which outcome: the audit records in Loki.",
    variables=(SERVICE,),
    rows=(
        row(
            4,
            number("Records", "Records of the shown time.", loki(counted(RECORDS), instant=True)),
            number(
                "Failures",
                "Records whose outcome is a failure.",
                loki(counted(FAILURES) + " or vector(0)", instant=True),
                bad_from=1,
            ),
            number(
                "Actors",
                "Different actors of the shown time.",
                loki(f"count({counted(RECORDS, 'audit_actor_id')})", instant=True),
            ),
            number(
                "Checkpoints",
                "Signed checkpoints that reached Loki: its memory against rollback.",
                loki(
                    counted('{service_name=~"$service"} | event_name = "audit.checkpoint"'),
                    instant=True,
                ),
            ),
        ),
        row(
            8,
            lines(
                "Records by action",
                "The ten most frequent actions.",
                loki(f"topk(10, {per_second(RECORDS, 'audit_action')})", "{{audit_action}}"),
                unit="cps",
                stacked=True,
            ),
            lines(
                "Records by outcome",
                "success, failure, or unknown where the status says neither.",
                loki(per_second(RECORDS, "audit_outcome"), "{{audit_outcome}}"),
                unit="cps",
                stacked=True,
            ),
        ),
        row(
            8,
            ranking(
                "Top actors",
                "Who appears most often.",
                loki(top(RECORDS, "audit_actor_id"), "{{audit_actor_id}}", instant=True),
            ),
            ranking(
                "Top resources",
                "What is acted on most often.",
                loki(
                    top(
                        RECORDS + ' | audit_target_id != ""',
                        "audit_target_type",
                        "audit_target_id",
                    ),
                    "{{audit_target_type}} {{audit_target_id}}",
                    instant=True,
                ),
            ),
            ranking(
                "Event classes",
                "Records by event type.",
                loki(top(RECORDS, "audit_event_type"), "{{audit_event_type}}", instant=True),
            ),
        ),
        row(
            8,
            lines(
                "Failures by action",
                "Records whose outcome is a failure.",
                loki(per_second(FAILURES, "audit_action"), "{{audit_action}}"),
                unit="cps",
            ),
            lines(
                "Records by service",
                "Where records come from.",
                loki(per_second(RECORDS, "service_name"), "{{service_name}}"),
                unit="cps",
            ),
        ),
        row(
            9,
            log("Failures", "The records themselves, newest first.", loki(FAILURES)),
        ),
        row(
            12,
            log(
                "Live",
                "Every record, newest first. A line is the evidence, byte for byte; fields with "
                "a trace id link to the trace.",
                loki(RECORDS),
            ),
        ),
    ),
)

SECURITY: Final = Dashboard(
    uid="otel-audit-security",
    title="Audit security",
    meaning="Log-ins, secrets, privileges and sensitive data: what a security team looks at.",
    variables=(SERVICE,),
    since="now-24h",
    rows=(
        row(
            4,
            number(
                "Failed log-ins",
                "Attempts that were refused.",
                loki(
                    counted(LOGINS + ' | audit_outcome = "failure"') + " or vector(0)",
                    instant=True,
                ),
                bad_from=1,
            ),
            number(
                "Log-ins",
                "Attempts that succeeded.",
                loki(counted(LOGINS + ' | audit_outcome = "success"'), instant=True),
            ),
            number(
                "Secrets refused",
                "Attempts to get at a secret that were refused.",
                loki(
                    counted(CREDENTIALS + ' | audit_outcome = "failure"') + " or vector(0)",
                    instant=True,
                ),
                bad_from=1,
            ),
            number(
                "Alerts firing",
                "Of Prometheus and of Loki's ruler together.",
                prometheus(
                    'count(ALERTS{alertname=~"Audit.*", alertstate="firing"}) or vector(0)',
                    instant=True,
                ),
                bad_from=1,
            ),
        ),
        row(
            8,
            lines(
                "Log-ins by outcome",
                "Attempts a second.",
                loki(per_second(LOGINS, "audit_outcome"), "{{audit_outcome}}"),
                unit="cps",
            ),
            ranking(
                "Failed log-ins by account",
                "The account that was claimed.",
                loki(
                    top(LOGINS + ' | audit_outcome = "failure"', "audit_field_user_id"),
                    "{{audit_field_user_id}}",
                    instant=True,
                ),
            ),
            ranking(
                "Failed log-ins by address",
                "Where the attempts came from.",
                loki(
                    top(LOGINS + ' | audit_outcome = "failure"', "client_address"),
                    "{{client_address}}",
                    instant=True,
                ),
            ),
        ),
        row(
            8,
            lines(
                "Secrets by outcome",
                "Secrets that were read, created, rotated or deleted.",
                loki(per_second(CREDENTIALS, "audit_outcome"), "{{audit_outcome}}"),
                unit="cps",
            ),
            ranking(
                "Secrets by actor",
                "Who uses which secret.",
                loki(
                    top(CREDENTIALS, "audit_actor_id", "audit_target_id"),
                    "{{audit_actor_id}}: {{audit_target_id}}",
                    instant=True,
                ),
            ),
            ranking(
                "Sensitive data by actor",
                "Health information, exports, deletions, consent.",
                loki(
                    top(SENSITIVE, "audit_event_type", "audit_actor_id"),
                    "{{audit_event_type}}: {{audit_actor_id}}",
                    instant=True,
                ),
            ),
        ),
        row(
            8,
            table(
                "Alerts",
                "What is pending or firing; the runbook of each is in docs/runbooks/.",
                prometheus('ALERTS{alertname=~"Audit.*"}', instant=True),
            ),
            log("Privileges and administration", "Newest first.", loki(ADMIN)),
        ),
        row(
            10,
            log("Secrets", "Access to credentials, newest first.", loki(CREDENTIALS)),
            log(
                "Failed log-ins",
                "Newest first.",
                loki(LOGINS + ' | audit_outcome = "failure"'),
            ),
        ),
    ),
)

PIPELINE: Final = Dashboard(
    uid="otel-audit-pipeline",
    title="Audit pipeline",
    meaning="Whether every record that was promised arrives: from the trail to Loki.",
    variables=(METRIC_SERVICE,),
    rows=(
        row(
            4,
            number(
                "Emitted",
                "Records that became durable in a trail.",
                prometheus(increase("audit_records_emitted_total", APPLICATIONS), instant=True),
            ),
            number(
                "Accepted",
                "Log records that the Collector took: records and checkpoints.",
                prometheus(
                    increase("otelcol_receiver_accepted_log_records_total", AUDIT), instant=True
                ),
            ),
            number(
                "Sent",
                "Log records that Loki confirmed to the Collector.",
                prometheus(
                    increase("otelcol_exporter_sent_log_records_total", TO_LOKI), instant=True
                ),
            ),
            number(
                "In Loki",
                "Lines that Loki took; what it has already counts again.",
                prometheus(
                    increase("loki_distributor_lines_received_total", 'tenant="audit"'),
                    instant=True,
                ),
            ),
            number(
                "Dropped",
                "Records that the disk did not confirm or that found no room. Each caller was told.",
                prometheus(increase("audit_records_dropped_total", APPLICATIONS), instant=True),
                bad_from=1,
            ),
            number(
                "Set aside",
                "Records that a destination refuses: otel-audit ship status.",
                prometheus(
                    f"sum(otel_audit_quarantine_size{{{APPLICATIONS}}}) or vector(0)", instant=True
                ),
                bad_from=1,
            ),
        ),
        row(
            9,
            lines(
                "Emitted, accepted, sent, in Loki",
                "The same records at each step: the lines lie on each other but for delays and "
                "checkpoints.",
                prometheus(rate("audit_records_emitted_total", APPLICATIONS), "emitted"),
                prometheus(rate("audit_records_exported_total", APPLICATIONS), "exported"),
                prometheus(rate("otelcol_receiver_accepted_log_records_total", AUDIT), "accepted"),
                prometheus(rate("otelcol_exporter_sent_log_records_total", TO_LOKI), "sent"),
                prometheus(
                    rate("loki_distributor_lines_received_total", 'tenant="audit"'), "in Loki"
                ),
                unit="cps",
            ),
            lines(
                "Waiting in the trail",
                "Records that a destination does not have yet.",
                prometheus(
                    "sum by (service_name, otel_audit_destination) "
                    f"(audit_queue_depth{{{APPLICATIONS}}})",
                    "{{service_name}} → {{otel_audit_destination}}",
                ),
            ),
            lines(
                "Age of the first that waits",
                "How late a destination is.",
                prometheus(
                    "max by (service_name, otel_audit_destination) "
                    f"(otel_audit_queue_age_seconds{{{APPLICATIONS}}})",
                    "{{service_name}} → {{otel_audit_destination}}",
                ),
                unit="s",
            ),
        ),
        row(
            8,
            lines(
                "Commit",
                "One group commit with its sync: what a caller waits for.",
                prometheus(quantile(0.5, "otel_audit_commit_duration_seconds"), "half"),
                prometheus(quantile(0.99, "otel_audit_commit_duration_seconds"), "99 %"),
                unit="s",
            ),
            lines(
                "Export",
                "One request to a destination.",
                prometheus(
                    quantile(0.5, "audit_export_duration_seconds", "otel_audit_destination"),
                    "half → {{otel_audit_destination}}",
                ),
                prometheus(
                    quantile(0.99, "audit_export_duration_seconds", "otel_audit_destination"),
                    "99 % → {{otel_audit_destination}}",
                ),
                unit="s",
            ),
            lines(
                "Requests that delivered nothing",
                "They are tried again for ever.",
                prometheus(
                    rate(
                        "otel_audit_export_failures_total",
                        APPLICATIONS,
                        "otel_audit_destination",
                        "error_type",
                    ),
                    "{{otel_audit_destination}}: {{error_type}}",
                ),
                unit="reqps",
            ),
        ),
        row(
            8,
            lines(
                "Age of the last checkpoint",
                "Signed each second of activity, and each hour when idle.",
                prometheus(
                    f"max by (service_name) (otel_audit_checkpoint_age_seconds{{{APPLICATIONS}}})",
                    "{{service_name}}",
                ),
                unit="s",
            ),
            lines(
                "Records without a checkpoint",
                "Nothing proves these yet.",
                prometheus(
                    f"sum by (service_name) (otel_audit_checkpoint_pending{{{APPLICATIONS}}})",
                    "{{service_name}}",
                ),
            ),
            lines(
                "Reconciliation",
                "What the last comparison of Loki with the trail found; all but checked should "
                "be 0.",
                *(
                    prometheus(f"sum(otel_audit_reconcile_{kind}{{{APPLICATIONS}}})", kind)
                    for kind in ("checked", "missing", "altered", "foreign")
                ),
            ),
        ),
        row(
            8,
            lines(
                "The Collector's queue",
                "What is on the Collector's disk because Loki has not confirmed it, in bytes.",
                prometheus(
                    f'sum by (instance) (otelcol_exporter_queue_size{{data_type="logs", {TO_LOKI}}})',
                    "waiting in {{instance}}",
                ),
                prometheus(
                    "sum by (instance) "
                    f'(otelcol_exporter_queue_capacity{{data_type="logs", {TO_LOKI}}})',
                    "capacity of {{instance}}",
                ),
                unit="bytes",
            ),
            lines(
                "Collector: refused, failed",
                "Refused or not put on disk: the sender tries again. Failed for good: Loki said "
                "no, and reconciliation finds them.",
                prometheus(rate("otelcol_receiver_refused_log_records_total", AUDIT), "refused"),
                prometheus(
                    rate("otelcol_exporter_enqueue_failed_log_records_total", TO_LOKI),
                    "not put on disk",
                ),
                prometheus(
                    rate("otelcol_exporter_send_failed_log_records_total", TO_LOKI),
                    "failed for good",
                ),
                unit="cps",
            ),
            lines(
                "Loki: discarded",
                "Lines that Loki did not take, by reason.",
                prometheus(
                    rate("loki_discarded_samples_total", 'tenant="audit"', "reason"), "{{reason}}"
                ),
                unit="cps",
            ),
        ),
    ),
)

_STATE: Final = " or ".join(
    f"({place} * max by (service_name, component) "
    f'(otel_audit_health_status{{{APPLICATIONS}, state="{state}"}} == 1))'
    for place, state in enumerate(("healthy", "degraded", "unhealthy", "unknown"))
)

HEALTH: Final = Dashboard(
    uid="otel-audit-health",
    title="Audit health",
    meaning="The components that services watch, and the servers that carry audit records.",
    variables=(HEALTH_SERVICE,),
    rows=(
        row(
            4,
            *(
                number(
                    state.title(),
                    f"Components that are {state} now.",
                    prometheus(
                        f'sum(otel_audit_health_status{{{APPLICATIONS}, state="{state}"}})',
                        instant=True,
                    ),
                    bad_from=None if state == "healthy" else 1,
                )
                for state in ("healthy", "degraded", "unhealthy", "unknown")
            ),
            number(
                "Servers down",
                "Of the Collector and Loki, as Prometheus sees them.",
                prometheus('count(up{job=~"otelcol-audit|loki"} == 0) or vector(0)', instant=True),
                bad_from=1,
            ),
        ),
        row(
            10,
            states(
                "States",
                "Each component over time.",
                prometheus(_STATE, "{{service_name}}: {{component}}"),
            ),
        ),
        row(
            8,
            lines(
                "Duration of checks",
                "The newest check that ended.",
                prometheus(
                    "max by (service_name, component) "
                    f"(otel_audit_health_check_duration_seconds{{{APPLICATIONS}}})",
                    "{{service_name}}: {{component}}",
                ),
                unit="s",
            ),
            lines(
                "Failed checks",
                "A second, by component.",
                prometheus(
                    rate(
                        "otel_audit_health_failures_total",
                        APPLICATIONS,
                        "service_name",
                        "component",
                    ),
                    "{{service_name}}: {{component}}",
                ),
                unit="cps",
            ),
            lines(
                "Time since the last success",
                "By component.",
                prometheus(
                    "max by (service_name, component) "
                    f"(otel_audit_health_last_success_age_seconds{{{APPLICATIONS}}})",
                    "{{service_name}}: {{component}}",
                ),
                unit="s",
            ),
        ),
        row(
            8,
            lines(
                "Servers",
                "1 is up.",
                prometheus('up{job=~"otelcol-audit|loki"}', "{{job}} {{instance}}"),
            ),
            lines(
                "Memory of the Collector",
                "It refuses above its limit, and senders wait.",
                prometheus("otelcol_process_memory_rss_bytes", "{{instance}}"),
                unit="bytes",
            ),
            lines(
                "Free space under the trail",
                "Below 64 MiB health is unhealthy; a full disk takes no records.",
                prometheus(
                    f"min by (service_name) (otel_audit_trail_disk_free_bytes{{{APPLICATIONS}}})",
                    "{{service_name}}",
                ),
                unit="bytes",
            ),
        ),
    ),
)

DASHBOARDS: Final = (OVERVIEW, SECURITY, PIPELINE, HEALTH)
