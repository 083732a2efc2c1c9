import pytest

from dim.evaluate import evaluation

LABELS = ["cat", "cat", "dog", "owl"]
NEAREST = [["cat", "dog"], ["dog", "cat"], ["cat", "owl"], [None, "dog"]]


def test_top_k_accuracy_is_the_share_with_their_label_among_the_nearest():
    assert evaluation.top_k_accuracy(LABELS, NEAREST) == 0.5


def test_the_seeds_report_counts_any_hit_and_the_true_one_only_the_nearest():
    found = evaluation.classification_reports(LABELS, NEAREST)
    assert found["top_k"]["accuracy"] == 0.5
    assert found["top_k"]["cat"] == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1-score": 0.8, "support": 2.0}
    assert found["top_1"]["accuracy"] == 0.25
    assert found["top_1"]["cat"]["recall"] == 0.5
    assert found["top_1"]["owl"] == {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 1.0}


def test_a_query_whose_list_is_empty_is_a_miss():
    assert evaluation.classification_reports(["cat"], [[]])["top_k"]["accuracy"] == 0.0


def test_many_labels_and_a_single_query_give_no_warning():
    labels = [str(number) for number in range(40)]
    assert evaluation.classification_reports(labels, [[label] for label in labels])["top_1"]["accuracy"] == 1.0
    assert evaluation.classification_reports(["a"], [["b"]])["top_1"]["a"]["recall"] == 0.0
    assert evaluation.classification_reports(["a"], [["a"]])["top_1"]["a"]["recall"] == 1.0
