"""scikit-learn's own checks of an estimator; what it fails, and why it is to fail.

All of them take long, as each trains for series of other sizes. Those that train nothing are always
run.
"""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from selfens_jax.classifier import SelfEnsembleClassifier

OWN_WORDS = "the mistake is refused, but not in scikit-learn's words"
PLACES = "the noise of a series is drawn for its place in X, so that votes may change with it"
# check: (what it says, the reason)
FAILS = {
    "check_complex_data": ("Complex data not supported", OWN_WORDS),
    "check_estimators_empty_data_messages": (r"0 feature\\\(s\\\)", OWN_WORDS),
    "check_estimators_nan_inf": ("doesn't check for NaN and inf", OWN_WORDS),
    "check_n_features_in_after_fitting": ("does not check for consistency", OWN_WORDS),
    "check_fit2d_predict1d": ("Reshape your data", OWN_WORDS),
    "check_fit2d_1sample": ("1 sample", OWN_WORDS),
    "check_fit2d_1feature": ("1 feature", OWN_WORDS),
    "check_dtype_object": (
        "series of type object",
        "what is in an array of objects is not certain to be numbers, and nothing is guessed",
    ),
    "check_methods_sample_order_invariance": ("not invariant", PLACES),
    "check_methods_subset_invariance": ("not invariant", PLACES),
}
TRAINS_NOTHING = {
    "check_complex_data",
    "check_classifiers_one_label",
    "check_classifiers_regression_target",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_dtype_object",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_sparse_array",
    "check_estimator_sparse_matrix",
    "check_estimator_sparse_tag",
    "check_estimator_tags_renamed",
    "check_estimators_empty_data_messages",
    "check_estimators_nan_inf",
    "check_estimators_unfitted",
    "check_fit1d",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_non_transformer_estimators_n_iter",
    "check_parameters_default_constructible",
    "check_requires_y_none",
    "check_set_params",
    "check_valid_tag_types",
}
CHECKS = {
    " ".join([check.func.__name__, *map(str, check.keywords.values())]): (estimator, check)
    for estimator, check in estimator_checks_generator(
        SelfEnsembleClassifier(model="lstm_fcn", epochs=1)
    )
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in TRAINS_NOTHING else pytest.mark.slow)
        for name in CHECKS
    ],
)
def test_estimator(name):
    estimator, check = CHECKS[name]
    if name not in FAILS:
        check(estimator)
        return
    says, _ = FAILS[name]
    with pytest.raises((AssertionError, ValueError), match=says):
        check(estimator)


def test_checks_that_fail_are_checks():
    assert FAILS.keys() <= CHECKS.keys()
    assert CHECKS.keys() >= TRAINS_NOTHING
