"""Toy lesson 01."""

import torch

from autograder import copies, exercise, grads, leaves

weighted_mean = exercise(
    "weighted_mean", number="01.1", points=2, reference="toycourse.sums:weighted_mean", seconds=1,
    memory_mb=300,
)


@weighted_mean.cases(visible=3, fresh=5)
def cases(g):
    n = g.size(3, 9)
    return dict(values=g.normal(n), mask=g.mask(n, p=0.5))


@weighted_mean.probe
def probe(answer, case):
    x = leaves({"values": case["values"]})
    value = answer.weighted_mean(x["values"], case["mask"])
    return dict(value=value, grad=grads(value, x), inputs_after=x)


@weighted_mean.mistake("You divide by all entries, also by those that the mask leaves out.")
def over_all(values, mask):
    return (values * mask).mean()


@weighted_mean.mistake("The mask is forgotten: entries that do not count are averaged too.")
def no_mask(values, mask):
    return values.mean()


@weighted_mean.mistake("A sum where a mean is asked.")
def summed(values, mask):
    return (values * mask).sum()


running_total = exercise(
    "running_total", number="01.2", points=1, reference="toycourse.sums:running_total", seconds=1
)


@running_total.cases(visible=3, fresh=5)
def totals(g):
    return dict(values=g.normal(g.size(3, 9)))


@running_total.mistake("The sum runs from the end to the beginning.")
def from_the_end(values):
    return values.flip(-1).cumsum(-1).flip(-1)


@running_total.mistake("The present entry is left out of its own total.")
def without_present(values):
    return values.cumsum(-1) - values


scaled_error = exercise(
    "scaled_error", number="01.3", points=3, reference="toycourse.sums:scaled_error", seconds=1,
    uses=["weighted_mean"],
)


@scaled_error.cases(visible=3, fresh=5)
def errors(g):
    n = g.size(3, 9)
    return dict(
        predicted=g.normal(n), target=g.normal(n), mask=g.mask(n, p=0.5), scale=g.uniform(0.2, 0.8)
    )


@scaled_error.mistake("The scale is forgotten.")
def unscaled(predicted, target, mask, scale):
    return ((predicted - target) ** 2 * mask).sum() / mask.sum()


@scaled_error.mistake("The errors are not squared, so that they cancel.")
def unsquared(predicted, target, mask, scale):
    return scale * ((predicted - target) * mask).sum() / mask.sum()


Shifted = exercise(
    "Shifted", number="01.4", points=2, reference="toycourse.sums:Shifted", seconds=1
)


@Shifted.cases(visible=2, fresh=4)
def shifts(g):
    return dict(start=g.normal(), x=g.normal(g.size(2, 6)))


@Shifted.probe(points=1)
def forward(answer, case):
    return dict(y=answer.Shifted(case["start"])(copies(case["x"])))


@Shifted.probe(points=1)
def learns(answer, case):
    model = answer.Shifted(case["start"])
    model(case["x"]).sum().backward()
    return dict(after=[p.detach() - 0.1 * p.grad for p in model.parameters()])


@Shifted.mistake("The shift is no parameter, so that nothing is learned.")
class Fixed(torch.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.shift = start

    def forward(self, x):
        return x + self.shift


@Shifted.mistake("The shift is subtracted.")
class Subtracted(torch.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(float(start)))

    def forward(self, x):
        return x - self.shift


Shifted.equivalent("`float(start)` becomes `start`", "the cases give a float already")
