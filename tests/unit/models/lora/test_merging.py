from serve_app.models.lora.merging import MergePolicy


def decisions(policy, forwards):
    return "".join("M" if policy.forward(mark == "a") else "." for mark in forwards)


def test_a_set_that_has_many_forwards_to_itself_is_merged():
    assert decisions(MergePolicy(after=3), "aaaaaa") == "...MMM"


def test_a_set_of_a_run_with_enough_left_is_merged_at_once():
    policy = MergePolicy(after=3)
    assert [policy.forward(alone, pays=True) for alone in (False, True, True, False)] == [False, True, True, True]


def test_one_shared_forward_restarts_the_count():
    assert decisions(MergePolicy(after=3), "aaaxaaaaa") == ".......MM"


def test_a_set_that_has_long_been_with_others_is_merged_no_more():
    assert decisions(MergePolicy(after=3), "aaaaxxxxxx") == "...MMMM..."


def test_a_guest_of_a_few_forwards_changes_nothing():
    assert decisions(MergePolicy(after=3), "aaaaxxxaxxx") == "...MMMMMMMM"
