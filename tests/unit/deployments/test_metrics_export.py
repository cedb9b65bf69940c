"""The metrics of several hosts in one answer."""

from __future__ import annotations

import asyncio

from serve_app.deployments.metrics_export import MetricsExport, merged

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


async def test_requests_at_a_time_share_one_answer_which_none_takes_from_another() -> None:
    asked, ready = [], asyncio.Event()

    async def read() -> str:
        asked.append(len(asked))
        await ready.wait()
        return f"answer {len(asked)}"

    export = MetricsExport(read)
    first, second = asyncio.create_task(export()), asyncio.create_task(export())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    third = asyncio.create_task(export())
    ready.set()
    assert (await second, await third, len(asked)) == ("answer 1", "answer 1", 1)
    assert await export() == "answer 2"
