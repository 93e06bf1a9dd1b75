# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The equations of multi-headed distillation, as pure functions of published predictions.

Letters: K clients publish, k of them (the rows one device owns) are students, B public samples,
H = m + 1 heads of which m are auxiliary, C classes, D embedding width, N candidate teachers.

A prediction has a `confidence`; `alignment` changes what is published before it is read;
`candidates` says who may teach whom, and `screening` who of them looks at the images; `rules` make
targets of them, and `robust_rules` make targets that a few liars cannot steer; `losses` compare a
student with its targets, and `embeddings` with its peers' embeddings. `messages` drops what cannot
be read, and `contract` tries the pieces of a run before it starts.

Source: A. Zhmoginov et al., "Decentralized Learning with Multi-Headed Distillation", CVPR 2023,
https://arxiv.org/abs/2211.15774.
"""

from mhd_jax.distill.alignment import MARGINAL_FLOOR, align, mean_prediction
from mhd_jax.distill.candidates import (
    Candidates,
    Teachers,
    candidates_along,
    chain_candidates,
    most_confident,
    random_candidate,
    sample_keys,
    select_teachers,
)
from mhd_jax.distill.confidence import (
    CONFIDENCES,
    ENERGY,
    BatchMean,
    Confidence,
    batch_mean,
    margin,
    max_prob,
    neg_entropy,
    standardized_energy,
)
from mhd_jax.distill.contract import check_pieces
from mhd_jax.distill.embeddings import (
    TrunkGradients,
    embedding_loss,
    embedding_loss_along,
    normalize,
    trunk_gradients,
)
from mhd_jax.distill.losses import (
    LOGIT_LOSSES,
    HeadLoss,
    head_losses,
    logit_kl,
    logit_mae,
    logit_mse,
    prediction_loss,
    soft_cross_entropy,
)
from mhd_jax.distill.robust_rules import reputations
from mhd_jax.distill.rules import (
    RULES,
    Choice,
    Target,
    TeacherRule,
    choose,
    class_thresholds_rule,
    entropy_power_rule,
    entropy_weighted_rule,
    label_share_rule,
    mean_log_prob_rule,
    mean_rule,
    most_confident_rule,
    random_rule,
    sharpen,
    targets,
)
from mhd_jax.distill.screening import compared_width, heard, relation, screened, views
from mhd_jax.distill.unreadable import NORMALISED, blank, readable

__all__ = [
    "MARGINAL_FLOOR", "align", "mean_prediction", "Candidates", "Teachers", "candidates_along",
    "chain_candidates", "most_confident", "random_candidate", "sample_keys", "select_teachers",
    "BatchMean", "CONFIDENCES", "Confidence", "ENERGY", "batch_mean", "margin", "max_prob",
    "neg_entropy", "standardized_energy", "TrunkGradients", "embedding_loss",
    "embedding_loss_along", "normalize", "trunk_gradients", "HeadLoss", "LOGIT_LOSSES",
    "check_pieces", "head_losses", "logit_kl", "logit_mae", "logit_mse", "prediction_loss",
    "soft_cross_entropy", "NORMALISED", "blank", "readable", "Choice", "RULES", "Target",
    "TeacherRule", "choose", "class_thresholds_rule", "entropy_power_rule",
    "entropy_weighted_rule", "label_share_rule", "mean_log_prob_rule", "mean_rule",
    "most_confident_rule", "random_rule", "reputations", "sharpen", "targets",
    "compared_width", "heard", "relation", "screened", "views",
]  # fmt: skip
