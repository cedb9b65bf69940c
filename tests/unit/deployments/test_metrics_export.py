"""The metrics of several hosts in one answer."""

from __future__ import annotations

from serve_app.deployments.metrics_export import merged

ONE = """# HELP ray_jobs Jobs
# TYPE ray_jobs gauge
ray_jobs{host="1"} 2.0
# HELP ray_run_seconds Run
# TYPE ray_run_seconds histogram
ray_run_seconds_bucket{host="1",le="+Inf"} 1.0
ray_run_seconds_count{host="1"} 1.0
"""
OTHER = """# HELP ray_run_seconds Run
# TYPE ray_run_seconds histogram
ray_run_seconds_bucket{host="2",le="+Inf"} 3.0

# HELP ray_jobs Jobs
# TYPE ray_jobs gauge
ray_jobs{host="2"} 5.0
"""


def test_each_metric_has_one_header_with_the_samples_of_all_hosts_behind_it() -> None:
    assert merged([ONE]) == ONE
    assert merged([ONE, OTHER]).splitlines() == [
        "# HELP ray_jobs Jobs",
        "# TYPE ray_jobs gauge",
        'ray_jobs{host="1"} 2.0',
        'ray_jobs{host="2"} 5.0',
        "# HELP ray_run_seconds Run",
        "# TYPE ray_run_seconds histogram",
        'ray_run_seconds_bucket{host="1",le="+Inf"} 1.0',
        'ray_run_seconds_count{host="1"} 1.0',
        'ray_run_seconds_bucket{host="2",le="+Inf"} 3.0',
    ]
