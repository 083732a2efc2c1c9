"""Makes the optimizer of a run: Keras's Adam or SGD with a learning rate schedule, decay, clipping and averaging.

All of it is Keras's own, and its state is in the optimizer's variables, which a checkpoint keeps. So a resumed run
takes the same steps as one that never stopped.

- Schedule: the learning rate rises linearly from 0 (warm-up), then stays or follows half a cosine (Loshchilov and
  Hutter, arXiv:1608.03983). It is a function of the step alone, and so the same on all workers.
- Weight decay is decoupled from the gradient (Loshchilov and Hutter, arXiv:1711.05101): w ← w − rate · decay · w.
  Biases and scalars such as GeM's p are left out, as He et al. do (arXiv:1812.01187, section 3.1): decay would pull
  them to 0 without making the network simpler.
- Clipping is of the whole batch's gradient (Pascanu et al., arXiv:1211.5063), whatever the number of workers.
- Averaging: m ← momentum · m + (1 − momentum) · w after each step. As in Polyak averaging and in Tarvainen and Valpola
  (arXiv:1703.01780), the steps use the weights themselves, and the averages are what is judged and returned. Triplets
  are mined by the weights, for which they must be hard.
"""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from dim.model.backend import keras
from dim.train.config import TrainConfig

OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}


def optimizer_of(config: TrainConfig, photos: int, variables: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """The optimizer of a run on `photos` training photos, built for `variables`. Call it in the strategy's scope."""
    optimizer = OPTIMIZERS[config.optimizer](
        learning_rate(config, photos),
        weight_decay=config.weight_decay or None,
        # Keras clips before it sums over the replicas; see `apply_gradients`.
        global_clipnorm=config.clip_norm / tf.distribute.get_strategy().num_replicas_in_sync or None,
        use_ema=config.ema > 0,
        ema_momentum=config.ema,
    )
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    optimizer.build(list(variables))
    return optimizer


def learning_rate(config: TrainConfig, photos: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of a run on `photos` training photos: a number, or a function of the step (from 0)."""
    if not config.scheduled:
        return config.learning_rate
    planned = config.planned_steps(photos)
    warm_up = round(config.warm_up * planned)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, planned - warm_up),
        alpha=1.0 if config.schedule == "constant" else 0.0,  # the share of the rate that is left at the end
        warmup_target=config.learning_rate,
        warmup_steps=warm_up,
    )


def apply_gradients(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable]
) -> None:
    """Takes a step along the sum of the replicas' `gradients`. Each replica calls this function in `strategy.run`.

    Keras sums the gradients after clipping them, but the norm of the sum is what is to be clipped. So each replica
    gives Keras its even part of the sum, for which the limit is as many times smaller.
    """
    if optimizer.global_clipnorm:
        replica = tf.distribute.get_replica_context()
        summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, list(gradients))
        gradients = [gradient / replica.num_replicas_in_sync for gradient in summed]
    optimizer.apply(gradients, variables)


def use_averages(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Sets `variables` to their averages, if `optimizer` has any. There are none before the first step."""
    if optimizer.use_ema and optimizer.iterations.numpy() > 0:
        optimizer.finalize_variable_values(list(variables))


@contextlib.contextmanager
def averaged(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Within this context, `variables` hold their averages, if `optimizer` has any; see `use_averages`."""
    if not optimizer.use_ema:
        yield
        return
    fitted = [variable.numpy() for variable in variables]
    use_averages(optimizer, variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, fitted, strict=True):
            variable.assign(value)
