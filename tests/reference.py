# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The equations of the method once more, in slow and obvious NumPy: the oracle of the tests.

Loops over clients, heads and samples, double precision, no JAX and nothing imported from
`mhd_jax`, so that an error in the fast code cannot repeat itself here. Shapes use the letters
K clients, k students, B samples, H heads (head 0 is the main head), C classes, D embedding width.

Sources: A. Zhmoginov et al., Decentralized Learning with Multi-Headed Distillation, CVPR 2023,
arXiv 2211.15774, for the method; each other function names its own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]
Candidates = list[tuple[int, int]]

NOBODY = -1


# --- The public batch ----------------------------------------------------------------------------


def mixup(samples: Floats, weights: Floats) -> NDArray[np.float64]:
    """(1 - w_p) x_p + w_p x_{p-1} for the sample in each place p, the last before the first.

    Source: H. Zhang et al., 2018, https://arxiv.org/abs/1710.09412.
    """
    samples = np.asarray(samples, np.float64)
    return np.stack([(1 - w) * samples[p] + w * samples[p - 1] for p, w in enumerate(weights)])


# --- Predictions and confidence ------------------------------------------------------------------


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """log p_c = z_c - log Σ_c' exp(z_c'), over the last axis."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def confidence(log_probs: Floats, measure: str) -> float:
    """Λ of one prediction [C]: how sure a head is of one sample.

    max_prob = max_c p_c; neg_entropy = Σ_c p_c log p_c, with 0 log 0 = 0; margin = largest minus
    second largest probability.
    """
    logs = [float(value) for value in log_probs]
    probs = [math.exp(value) for value in logs]
    if measure == "max_prob":
        return max(probs)
    if measure == "neg_entropy":
        # fsum is exact, so the same probabilities in another order are exactly as confident.
        return math.fsum(p * log_p for p, log_p in zip(probs, logs, strict=True) if p > 0)
    if measure == "margin":
        second, first = sorted(probs)[-2:]
        return first - second
    raise ValueError(f"no such confidence: {measure}")


# --- Who may teach, and who does -----------------------------------------------------------------


def wiring(
    adjacency: Bools, include_self: bool = True, same_rank: bool = False
) -> tuple[Bools, Bools | None]:
    """The masks below and same [K, K] of the head chain: row i may be taught by column j.

    A rank-r head learns from heads of rank r-1 of its peers and, with `include_self`, of its own
    client; with `same_rank` also from its peers' heads of rank r. A client without peers has
    no teacher at all, not even itself.
    """
    num_clients = len(adjacency)
    below = np.zeros((num_clients, num_clients), bool)
    for i in range(num_clients):
        has_peers = any(adjacency[i, j] for j in range(num_clients))
        for j in range(num_clients):
            below[i, j] = adjacency[i, j] or (include_self and has_peers and i == j)
    return below, np.array(adjacency, bool) if same_rank else None


def candidates(below: Bools, same: Bools | None, rank: int) -> Candidates:
    """All (client, head) that may teach head `rank` of one student, the winner of a tie first.

    Args:
      below: row [K] of the student: who may teach with the head of rank - 1.
      same: row [K] of the student: who may teach with the head of the same rank.
      rank: 1..H-1.
    """
    lower = [(client, rank - 1) for client in range(len(below)) if below[client]]
    equal = [] if same is None else [(c, rank) for c in range(len(same)) if same[c]]
    return lower + equal


def select_teachers(
    log_probs: Floats, below: Bools, same: Bools | None = None, measure: str = "max_prob"
) -> tuple[Ints, Ints]:
    """The most confident candidate for every student, sample and rank.

    Args:
      log_probs: [K, B, H, C], what the clients publish.
      below: bool [k, K]; same: bool [k, K] or None, see `candidates`.
      measure: see `confidence`.

    Returns:
      Client and head [k, B, H-1] of the teacher, -1 where nobody may teach.
    """
    _, num_samples, num_heads, _ = log_probs.shape
    client = np.full((len(below), num_samples, num_heads - 1), NOBODY)
    head = np.full_like(client, NOBODY)
    for i in range(len(below)):
        for rank in range(1, num_heads):
            allowed = candidates(below[i], None if same is None else same[i], rank)
            for b in range(num_samples):
                best = -math.inf
                for j, h in allowed:
                    value = confidence(log_probs[j, b, h], measure)
                    if value > best:  # strictly: the earlier candidate keeps a tie
                        best = value
                        client[i, b, rank - 1], head[i, b, rank - 1] = j, h
    return client, head


# --- Losses --------------------------------------------------------------------------------------


def soft_cross_entropy(target: Floats, log_probs: Floats) -> float:
    """-Σ_c t(c) log p(c) of one sample, target and prediction [C]."""
    return -sum(float(t) * float(log_p) for t, log_p in zip(target, log_probs, strict=True) if t)


def cross_entropy(log_probs: Floats, labels: Ints) -> float:
    """CE(y, p) = mean over samples of -log p(y): log_probs [B, C], labels [B]."""
    return -float(np.mean([log_probs[b, label] for b, label in enumerate(labels)]))


def prediction_loss(
    student_log_probs: Floats, log_probs: Floats, client: Ints, head: Ints
) -> NDArray[np.float64]:
    """L_aux,i,r = mean over samples of -Σ_c p_teacher(c) log p_i^r(c); 0 where nobody teaches.

    Args:
      student_log_probs: [k, B, H, C]; log_probs: [K, B, H, C].
      client, head: [k, B, H-1], the teacher of every student, sample and rank; -1 for nobody.

    Returns:
      [k, H-1].
    """
    num_students, num_samples, num_heads, _ = student_log_probs.shape
    loss = np.zeros((num_students, num_heads - 1))
    for i in range(num_students):
        for rank in range(1, num_heads):
            for b in range(num_samples):
                j, h = client[i, b, rank - 1], head[i, b, rank - 1]
                if j == NOBODY:
                    continue
                target = np.exp(np.asarray(log_probs[j, b, h], np.float64))
                value = soft_cross_entropy(target, student_log_probs[i, b, rank])
                loss[i, rank - 1] += value / num_samples
    return loss


def normalise(embedding: Floats) -> NDArray[np.float64]:
    """ξ̂ = ξ / ‖ξ‖₂ of one embedding [D]; an embedding of length zero stays zero."""
    vector = np.array([float(x) for x in embedding])
    length = math.sqrt(sum(x**2 for x in vector))
    return vector / length if length > 0 else vector


def embedding_loss(
    student_embeddings: Floats, embeddings: Floats, peers: Bools
) -> NDArray[np.float64]:
    """L_emb,i = mean over samples and over peers j of ‖ξ̂_i(x) - ξ̂_j(x)‖²; 0 without peers.

    Args:
      student_embeddings: [k, B, D]; embeddings: [K, B, D]; peers: bool [k, K].

    Returns:
      [k].
    """
    num_students, num_samples, _ = student_embeddings.shape
    loss = np.zeros(num_students)
    for i in range(num_students):
        distances = [
            float(((normalise(student_embeddings[i, b]) - normalise(embeddings[j, b])) ** 2).sum())
            for j in range(len(embeddings))
            if peers[i, j]
            for b in range(num_samples)
        ]
        loss[i] = sum(distances) / len(distances) if distances else 0.0
    return loss


def local_objective(
    private_log_probs: Floats,
    labels: Ints,
    log_probs: Floats,
    embeddings: Floats,
    adjacency: Bools,
    *,
    nu_emb: float = 1.0,
    nu_aux: float = 3.0,
    measure: str = "max_prob",
    include_self: bool = True,
    same_rank: bool = False,
    weight: float = 1.0,
    alignment: float = 0.0,
    momentum: float = 0.0,
    screening: float = 0.0,
) -> NDArray[np.float64]:
    """L_i = CE(y, h_i^0(x)) + w (ν_emb L_emb,i + ν_aux Σ_{r=1..m} L_aux,i,r) of every client, [K].

    w fades in over a run. Teachers are aligned with τ = `alignment`, in the first step of a moving
    average that starts uniform: p̄ = momentum / C + (1 - momentum) mean over the batch.

    Args:
      private_log_probs: [K, B, H, C] on each client's private batch, labels [K, B]: only the main
        head sees labels.
      log_probs: [K, B', H, C] and embeddings [K, B', D] on the public batch.
      adjacency: bool [K, K], row distils from column.
    """
    below, same = wiring(adjacency, include_self, same_rank)
    marginal = np.exp(np.asarray(log_probs, np.float64)).mean(axis=1)
    marginal = momentum / log_probs.shape[-1] + (1 - momentum) * marginal
    published = align(log_probs, alignment, marginal=marginal)
    if screening:
        hears = heard(published, published, screening)
        below, same = below & hears, None if same is None else same & hears
    client, head = select_teachers(published, below, same, measure)
    aux = prediction_loss(log_probs, published, client, head)
    emb = embedding_loss(embeddings, embeddings, adjacency)
    total = np.zeros(len(adjacency))
    for i in range(len(adjacency)):
        private = cross_entropy(private_log_probs[i, :, 0], labels[i])
        total[i] = private + weight * (nu_emb * emb[i] + nu_aux * sum(aux[i]))
    return total


# --- Screening ------------------------------------------------------------------------------------


def relation(mine: Floats, theirs: Floats) -> float:
    """How far two heads' log-probabilities [B, C] go together, in standard deviations.

    With K and L the Gram matrices of both, centred, the statistic is Σ_ab K_ab L_ab over its mean
    when the images of one side are shuffled, tr K tr L / (B - 1). Its degrees of freedom are
    (tr K)² / Σ K_ab² times the same of L; the cube root of chi-squared over its degrees is close
    to normal (E. Wilson and M. Hilferty, 1931). Probabilities below 0.001 count as 0.001.
    """
    grams = []
    for log_probs in (mine, theirs):
        values = np.maximum(np.asarray(log_probs, np.float64), math.log(1e-3))
        values = values - values.mean(axis=0)
        grams.append(values @ values.T)
    first, second = grams
    by_chance = np.trace(first) * np.trace(second) / (len(mine) - 1)
    freedom = 1.0
    for gram in grams:
        freedom *= np.trace(gram) ** 2 / (gram**2).sum()
    spread = 2 / (9 * freedom)
    ratio = float((first * second).sum() / by_chance)
    return (ratio ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def heard(own: Floats, published: Floats, threshold: float) -> Bools:
    """Whom each student hears: main heads that go together, and heads that do with their main one.

    Who would not reach twice the threshold with itself judges nobody and hears everybody; the
    heads of a publisher of whom that holds are not compared.

    Args:
      own: [k, B, H, C]; published: [N, B, H, C], log-probabilities.

    Returns:
      bool [k, N].
    """
    hears = np.ones((len(own), len(published)), bool)
    for j, said in enumerate(published):
        compared = relation(said[:, 0], said[:, 0]) >= 2 * threshold
        others = [relation(said[:, 0], said[:, h]) for h in range(1, said.shape[1])]
        honest = not compared or all(one >= threshold for one in others)
        for i, mine in enumerate(own):
            if relation(mine[:, 0], mine[:, 0]) >= 2 * threshold:
                hears[i, j] = honest and relation(mine[:, 0], said[:, 0]) >= threshold
    return hears


# --- Other teacher rules: weights over the candidates --------------------------------------------


def rule_weights(predictions: list[Floats], rule: str, measure: str = "max_prob") -> list[float]:
    """How much each candidate's prediction [C] of one sample counts in the target; they add to 1.

    most_confident: 1 for the first candidate of the largest confidence (the method itself).
    mean: w_j = 1/n: the ensemble of codistillation, R. Anil et al., Large scale distributed
      neural network training through online distillation, arXiv 1804.03235.
    entropy_weighted: w_j = exp(-H(p_j)) / Σ_j' exp(-H(p_j')), H(p) = -Σ_c p_c log p_c, the
      softmax over candidates of the negative entropy. Weighting the members of an ensemble by
      how certain they are is common (F. Sattler et al., FedAUX, arXiv 2102.02514, with scores
      of another kind); this form is ours.
    """
    if rule == "most_confident":
        confidences = [confidence(p, measure) for p in predictions]
        winner = confidences.index(max(confidences))
        return [float(n == winner) for n in range(len(predictions))]
    if rule == "mean":
        return [1.0 / len(predictions)] * len(predictions)
    if rule == "entropy_weighted":
        powers = [math.exp(confidence(p, "neg_entropy")) for p in predictions]
        return [power / sum(powers) for power in powers]
    if rule == "entropy_power":  # w_j = max(H(p_j) / log C, 0.01)^-2, normalised
        scale = math.log(len(predictions[0]))
        powers = [max(-confidence(p, "neg_entropy") / scale, 0.01) ** -2 for p in predictions]
        return [power / sum(powers) for power in powers]
    raise ValueError(f"no such rule: {rule}")


def geometric_mean(predictions: list[Floats]) -> NDArray[np.float64]:
    """A product of experts, p(c) = Π_j p_j(c)^(1/n) / Σ_c' of the same, for log-probabilities [C].

    Source: G. Hinton, Training products of experts by minimizing contrastive divergence, 2002.
    """
    classes = len(predictions[0])
    logs = [sum(float(p[c]) for p in predictions) / len(predictions) for c in range(classes)]
    products = [math.exp(value) for value in logs]
    return np.array([product / sum(products) for product in products])


def share_weighted(predictions: list[Floats], shares: list[Floats]) -> NDArray[np.float64]:
    """p(c) = Σ_j q_j(c) p_j(c), normalised over c; q_j is the label distribution of client j."""
    classes = range(len(predictions[0]))
    sums = [
        sum(float(q[c]) * math.exp(p[c]) for p, q in zip(predictions, shares, strict=True))
        for c in classes
    ]
    return np.array([value / sum(sums) for value in sums])


def class_thresholds(log_probs: Floats) -> NDArray[np.float64]:
    """Threshold [C] of one head from its predictions [B, C] on the public batch.

    τ(c) = p̄(c) / max_c' p̄(c') · mean over samples of max_c p_c. Source: Y. Wang et al.,
    FreeMatch, arXiv 2205.07246, equations 3 to 5, without the moving averages.
    """
    probs = np.exp(np.asarray(log_probs, np.float64))
    mean = probs.mean(axis=0)
    return mean / mean.max() * probs.max(axis=1).mean()


# --- Alignment: each teacher against its own mean prediction --------------------------------------


def align(
    log_probs: Floats,
    strength: float,
    frequencies: Floats | None = None,
    marginal: Floats | None = None,
) -> NDArray[np.float64]:
    """log p~ with p~_jh(c|x) proportional to p_jh(c|x) (π(c) / max(p̄_jh(c), 1e-6))^τ.

    p̄_jh is the mean over the batch of the same client's and head's predictions, or `marginal`
    [K, H, C]. `log_probs` [K, B, H, C]; τ = 0 changes nothing. The idea is D. Berthelot et al.,
    ReMixMatch, arXiv 1911.09785; a marginal for every teacher is this project's.
    """
    num_clients, num_samples, num_heads, num_classes = log_probs.shape
    aligned = np.zeros(log_probs.shape)
    for j in range(num_clients):
        for h in range(num_heads):
            probs = np.exp(np.asarray(log_probs[j, :, h], np.float64))
            for b in range(num_samples):
                values = []
                for c in range(num_classes):
                    mean = sum(probs[:, c]) / num_samples
                    mean = max(mean if marginal is None else float(marginal[j, h, c]), 1e-6)
                    prior = 1.0 if frequencies is None else float(frequencies[c])
                    values.append(probs[b, c] * (prior / mean) ** strength)
                aligned[j, b, h] = np.log(np.array(values) / sum(values))
    return aligned


def standardized_energy(logits: Floats) -> NDArray[np.float64]:
    """(e - mean of e) / std of e per client and head, e = log Σ_c exp z_c: [K, B, H]."""
    logits = np.asarray(logits, np.float64)
    energy = np.log(np.exp(logits).sum(axis=-1))
    out = np.zeros(energy.shape)
    for j, h in np.ndindex(energy.shape[0], energy.shape[2]):
        column = energy[j, :, h]
        out[j, :, h] = (column - column.mean()) / column.std()
    return out


def sharpen(target: Floats, temperature: float) -> NDArray[np.float64]:
    """t_c^(1/T) / Σ_c' t_c'^(1/T) for one target [C]: T < 1 sharpens, T > 1 softens.

    Source: D. Berthelot et al., MixMatch, arXiv 1905.02249, section 3.2; for one teacher it is
    the temperature of G. Hinton et al., arXiv 1503.02531, softmax(z/T).
    """
    powers = [float(t) ** (1.0 / temperature) for t in target]
    return np.array([power / sum(powers) for power in powers])


def rule_loss(
    student_log_probs: Floats,
    log_probs: Floats,
    below: Bools,
    same: Bools | None = None,
    *,
    rule: str,
    temperature: float = 1.0,
    measure: str = "max_prob",
    shares: Floats | None = None,
) -> NDArray[np.float64]:
    """Prediction loss towards the rule's target, sharpened: [k, H-1].

    The target is Σ_j w_j p_j(c), w from `rule_weights`, but for the rules that mix otherwise.
    `shares` [K, C] are the clients' label distributions.
    """
    num_students, num_samples, num_heads, _ = student_log_probs.shape
    loss = np.zeros((num_students, num_heads - 1))
    for i in range(num_students):
        for rank in range(1, num_heads):
            allowed = candidates(below[i], None if same is None else same[i], rank)
            for b in range(num_samples):
                if not allowed:
                    continue
                target = rule_target(log_probs, allowed, b, rule, measure, shares)
                if target is None:
                    continue
                value = soft_cross_entropy(
                    sharpen(target, temperature), student_log_probs[i, b, rank]
                )
                loss[i, rank - 1] += value / num_samples
    return loss


def rule_target(
    log_probs: Floats,
    allowed: Candidates,
    sample: int,
    rule: str,
    measure: str,
    shares: Floats | None,
) -> NDArray[np.float64] | None:
    """What one student's head learns towards on one sample, [C]; None for no teacher."""
    predictions = [log_probs[j, sample, h] for j, h in allowed]
    if rule == "mean_log_prob":
        return geometric_mean(predictions)
    if rule == "label_share":
        assert shares is not None
        return share_weighted(predictions, [shares[j] for j, _ in allowed])
    if rule == "class_thresholds":
        passing = [
            p
            for p, (j, h) in zip(predictions, allowed, strict=True)
            if math.exp(max(p)) >= class_thresholds(log_probs[j, :, h])[int(np.argmax(p))]
        ]
        if not passing:
            return None
        predictions, rule = passing, "most_confident"
    weights = rule_weights(predictions, rule, measure)
    target = np.zeros(log_probs.shape[-1])
    for weight, prediction in zip(weights, predictions, strict=True):
        target += weight * np.exp(np.asarray(prediction, np.float64))
    return target


# --- Other methods -------------------------------------------------------------------------------


def codistillation_loss(
    student_log_probs: Floats, log_probs: Floats, adjacency: Bools
) -> NDArray[np.float64]:
    """Main head towards the mean probability of the peers' main heads, [k]; 0 without peers.

    L_i = mean over samples of -Σ_c p̄_i(c) log p_i^0(c), p̄_i = mean over peers j of p_j^0.
    Source: R. Anil et al., arXiv 1804.03235. `student_log_probs` [k, B, H, C], `log_probs`
    [K, B, H, C], `adjacency` bool [k, K].
    """
    num_students, num_samples, _, _ = student_log_probs.shape
    loss = np.zeros(num_students)
    for i in range(num_students):
        peers = [j for j in range(len(log_probs)) if adjacency[i, j]]
        for b in range(num_samples):
            if not peers:
                continue
            target = np.zeros(log_probs.shape[-1])
            for j in peers:
                target += np.exp(np.asarray(log_probs[j, b, 0], np.float64)) / len(peers)
            loss[i] += soft_cross_entropy(target, student_log_probs[i, b, 0]) / num_samples
    return loss


def fedmd_consensus(logits: Floats, adjacency: Bools) -> NDArray[np.float64]:
    """Mean of the raw logits of a client's peers and its own, [K, B, C].

    z̄_i(x) = (z_i(x) + Σ_{j peer of i} z_j(x)) / (1 + number of peers). On the complete graph all
    clients share one consensus, as in D. Li and J. Wang, FedMD, arXiv 1910.03581. `logits`
    [K, B, C] are those of the main heads.
    """
    consensus = np.zeros(logits.shape)
    for i in range(len(logits)):
        voices = [j for j in range(len(logits)) if adjacency[i, j] or i == j]
        consensus[i] = sum(np.asarray(logits[j], np.float64) for j in voices) / len(voices)
    return consensus


def fedmd_loss(logits: Floats, consensus: Floats, kind: str = "mae") -> float:
    """How far one client's logits [B, C] are from the consensus [B, C].

    mae = mean over samples and classes of |z - z̄| (what the authors' code does); mse = the same
    of (z - z̄)²; kl = mean over samples of Σ_c p̄(c) (log p̄(c) - log p(c)), p̄ = softmax(z̄).
    """
    num_samples, num_classes = logits.shape
    total = 0.0
    for b in range(num_samples):
        difference = [float(logits[b, c]) - float(consensus[b, c]) for c in range(num_classes)]
        if kind == "mae":
            total += sum(abs(d) for d in difference) / num_classes
        elif kind == "mse":
            total += sum(d * d for d in difference) / num_classes
        elif kind == "kl":
            log_target, log_probs = log_softmax(consensus[b]), log_softmax(logits[b])
            total += sum(math.exp(t) * (t - p) for t, p in zip(log_target, log_probs, strict=True))
        else:
            raise ValueError(f"no such loss: {kind}")
    return total / num_samples


def uniform_matrix(num_clients: int) -> NDArray[np.float64]:
    """W_ij = 1/K: the plain average of FedAvg (McMahan et al., arXiv 1602.05629), every client
    counting alike whatever the number of its samples."""
    return np.full((num_clients, num_clients), 1.0 / num_clients)


def metropolis_matrix(adjacency: Bools) -> NDArray[np.float64]:
    """W_ij = 1 / (1 + max(d_i, d_j)) for neighbours, W_ii = 1 - Σ_j W_ij: doubly stochastic.

    Source: L. Xiao, S. Boyd, S. Lall, Distributed average consensus with time-varying Metropolis
    weights, 2006. A directed edge counts as one in both directions: the weights exist for
    undirected graphs only.
    """
    num_clients = len(adjacency)
    linked = [
        [bool(adjacency[i, j] or adjacency[j, i]) and i != j for j in range(num_clients)]
        for i in range(num_clients)
    ]
    degree = [sum(row) for row in linked]
    weights = np.zeros((num_clients, num_clients))
    for i in range(num_clients):
        for j in range(num_clients):
            if linked[i][j]:
                weights[i, j] = 1.0 / (1 + max(degree[i], degree[j]))
        weights[i, i] = 1.0 - weights[i].sum()
    return weights


def mix(parameters: Floats, matrix: Floats) -> NDArray[np.float64]:
    """θ_i ← Σ_j W_ij θ_j, for one stacked array of parameters [K, ...] and W [K, K]."""
    mixed = np.zeros(parameters.shape)
    for i in range(len(parameters)):
        for j in range(len(parameters)):
            mixed[i] += float(matrix[i, j]) * np.asarray(parameters[j], np.float64)
    return mixed


# --- Data and measures ---------------------------------------------------------------------------


def label_shares(primary: Bools, skew: float) -> NDArray[np.float64]:
    """Probability [K, C] that a private sample of a label goes to a client: w_iℓ / Σ_j w_jℓ.

    w_iℓ = 1 + s where ℓ is a primary label of client i, else 1; each column adds to 1. With
    s = inf only primary clients hold a label; one that is nobody's is spread evenly.

    Args:
      primary: bool [K, C]; skew: s >= 0, may be inf.
    """
    num_clients, num_classes = primary.shape
    shares = np.zeros((num_clients, num_classes))
    for label in range(num_classes):
        weights = []
        for i in range(num_clients):
            if math.isinf(skew) and primary[:, label].any():
                weights.append(1.0 if primary[i, label] else 0.0)
            elif math.isinf(skew):
                weights.append(1.0)
            else:
                weights.append(1.0 + skew if primary[i, label] else 1.0)
        for i in range(num_clients):
            shares[i, label] = weights[i] / sum(weights)
    return shares


def count_correct(log_probs: Floats, labels: Ints) -> tuple[Ints, Ints]:
    """Correct answers [K, H, C] and samples [C] per class, every test sample once.

    `log_probs` [K, N, H, C], `labels` [N]; of equal predictions the lowest class counts.
    """
    num_clients, _, num_heads, num_classes = log_probs.shape
    correct = np.zeros((num_clients, num_heads, num_classes), int)
    count = np.zeros(num_classes, int)
    for n, label in enumerate(labels):
        count[label] += 1
        for i in range(num_clients):
            for h in range(num_heads):
                correct[i, h, label] += int(np.argmax(log_probs[i, n, h]) == label)
    return correct, count


def shared_and_private(
    correct: Ints, count: Ints, private_histogram: Ints
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shared accuracy β_sh = mean_c acc_c, private accuracy β_priv = Σ_c q_i(c) acc_c, [K, H].

    acc_c = correct/count of class c, q_i the label distribution of client i's private data. A
    class without test samples has no accuracy: it is left out of the mean, and out of q_i.

    Args:
      correct: [K, H, C]; count: [C]; private_histogram: [K, C].
    """
    num_clients, num_heads, num_classes = correct.shape
    tested = [c for c in range(num_classes) if count[c] > 0]
    shared = np.zeros((num_clients, num_heads))
    private = np.zeros((num_clients, num_heads))
    for i in range(num_clients):
        samples = sum(float(private_histogram[i, c]) for c in tested)
        for h in range(num_heads):
            for c in tested:
                accuracy = float(correct[i, h, c]) / float(count[c])
                shared[i, h] += accuracy / len(tested)
                private[i, h] += accuracy * float(private_histogram[i, c]) / samples
    return shared, private
