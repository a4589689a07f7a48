import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from tinyplug import TestMapper, TinyEvaluator, TinySegmentor, TrainMapper

from vss2.config import get_config
from vss2.d2.config import LazyCall as L
from vss2.d2.solver import get_default_optimizer_params
from vss2.data.build import build_test_loader, build_train_loader

model = L(TinySegmentor)(num_classes=3, width=8)
dataloader = {
    "train": L(build_train_loader)(
        dataset="tiny_train", mapper=L(TrainMapper)(), total_batch_size=4, num_workers=0
    ),
    "test": L(build_test_loader)(dataset="tiny_val", mapper=L(TestMapper)(), batch_size=3),
    "evaluator": L(TinyEvaluator)(dataset_name="tiny_val"),
}
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay=0.01),
    lr=0.01,
    betas=(0.9, 0.99),
)
lr_multiplier = L(LinearParamScheduler)(start_value=1.0, end_value=0.1)
train = get_config("common/train.py").train
train.max_iter = 12
train.seed = 7
train.device = "cpu"
train.num_threads = 1
train.tensorboard = False
train.eval_period = 5
train.log_period = 2
train.checkpointer.period = 2
