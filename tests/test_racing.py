"""Racing on recorded full evaluations of a supernet trained on real pictures."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from test_selection import Given

from dartslight.errors import InputError
from dartslight.genotype import Genotype
from dartslight.nets import Supernet
from dartslight.selection import Evaluation, Measurement, Perturbation, Race, Variant
from dartslight.selection.record import in_words, record
from dartslight.spaces import NASBENCH201, SPACES, Choices

BATCH = 32


@pytest.fixture(scope="module")
def recorded() -> list[torch.Tensor]:
    """For each edge the loss of every validation picture without each operation, (candidates, pictures)."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1) / 8 - 1
    labels = torch.tensor(digits.target)
    net = Supernet(NASBENCH201, 3, 4, 10)
    mixing = {"cell": torch.full((6, 5), 0.2)}
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
    for step in range(60):
        batch = torch.arange(step * 32, step * 32 + 32) % 900
        optimizer.zero_grad()
        F.cross_entropy(net(images[batch], mixing), labels[batch]).backward()
        optimizer.step()
    everything = Choices.everything(NASBENCH201)
    found = []
    with torch.no_grad():
        for edge in range(6):
            variants = [(mixing, everything.close(("cell", edge), op)) for op in (1, 2, 3, 4)]
            logits = net.forward_each(images[900:], variants)
            found.append(torch.stack([F.cross_entropy(y.double(), labels[900:], reduction="none") for y in logits]))
    return found


def race(losses: torch.Tensor, rule: Race) -> tuple[int, int]:
    """Returns the winner and the number of batches measured."""
    total = losses.shape[1] // BATCH
    left: tuple[int, ...] = rule.entrants
    used = 0
    done = 0
    for look in rule.looks(total):
        used += len(left) * (look - done)
        done = look
        left = rule.survivors([row[: look * BATCH] for row in losses], left, total)
        if len(left) == 1:
            return left[0], used
    used += len(left) * (total - done)
    return max(left, key=lambda i: rule.sign * float(losses[i, : total * BATCH].mean())), used


@pytest.mark.parametrize("confidence", [0.8, 0.99])
@pytest.mark.parametrize("sign", [1, -1])
def test_same_decision_as_often_as_promised(recorded: list[torch.Tensor], confidence: float, sign: int) -> None:
    rule = Race(confidence, sign, (0, 1, 2, 3))
    generator = torch.Generator().manual_seed(0)
    same = used = races = 0
    for losses in recorded:
        whole = losses[:, : losses.shape[1] // BATCH * BATCH]
        for _ in range(100):
            order = torch.randperm(whole.shape[1], generator=generator)
            winner, batches = race(whole[:, order], rule)
            same += winner == int((sign * whole).mean(dim=1).argmax())
            used += batches
            races += 1
    saved = 1 - used / (races * 4 * (recorded[0].shape[1] // BATCH))
    print(f"confidence {confidence}: same {same / races:.3f}, saved {saved:.2f}")
    assert same / races >= confidence
    assert saved > 0.05


def test_a_race_looks_after_2_4_8_batches_only() -> None:
    rule = Race(0.9, 1, (0, 1))
    values = [torch.ones(64), torch.zeros(64)]
    assert [rule.looks(total) for total in (1, 2, 3, 16, 17)] == [[], [], [2], [2, 4, 8], [2, 4, 8, 16]]
    assert rule.survivors(values, (0, 1), 16) == (0,)
    assert rule.survivors(values, (1,), 16) == (1,)
    assert Race(0.9, -1, (0, 1)).survivors(values, (0, 1), 16) == (1,)
    assert rule.survivors([values[0], values[0]], (0, 1), 16) == (0, 1)


class Raced(Given):
    """A supernet that lets candidates leave as soon as the race says so."""

    def measure(self, variants: list[Variant], evaluation: Evaluation, race: Race | None = None) -> list[Measurement]:
        whole = super().measure(variants, evaluation)
        assert race is not None
        assert race.entrants == tuple(range(1, len(variants)))
        best = max(race.entrants, key=lambda i: race.sign * float(whole[i].loss.mean()))
        short = [Measurement(m.loss[:5], m.correct[:5], m.divergence[:5], 1) for m in whole]
        return [m if i in (0, best) else short[i] for i, m in enumerate(whole)]


def test_the_record_says_what_was_measured() -> None:
    supernet = Raced(SPACES["nasbench201"], lambda v: float("nor_conv_3x3" in v.label))
    (decision,) = Perturbation(racing=0.99).decide(supernet, 0, 0).decisions
    assert [c.batches for c in decision.candidates] == [1, 1, 2, 1]
    assert decision.candidates[2].chosen
    assert (decision.batches, decision.pictures) == (2, 5)
    genotype_choices = Choices.everything(SPACES["nasbench201"])
    for edge in range(6):
        genotype_choices = genotype_choices.decide(("cell", edge), 1)
    words = in_words(Genotype.from_choices(SPACES["nasbench201"], genotype_choices), [record(decision, 0, 1, 1.0)])
    assert "on 5 batches; all of them to the end would have taken 8" in words


@pytest.mark.parametrize("settings", [{"racing": 0.4}, {"racing": 1.0}, {"preset": "official", "racing": 0.9}])
def test_a_race_needs_pairs_and_a_confidence(settings: dict) -> None:
    with pytest.raises(InputError, match="racing"):
        Perturbation(**settings)
