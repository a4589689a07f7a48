"""Settings of a run. A config that leaves one out gets the value from here."""

train = dict(
    # Folder of the run: log.txt, config.yaml, metrics.json, checkpoints, inference/.
    output_dir="./output",
    # Weights to start from (published layout, vss2 checkpoint, .safetensors or URL); "" = none.
    init_checkpoint="",
    # Leave tensors of init_checkpoint whose shape differs (another number of classes) as
    # initialised, instead of refusing the file.
    init_allow_mismatch=False,
    # Unpickle checkpoints without restriction. That runs code in them: only for trusted files.
    trust_checkpoint=False,
    # Optimizer steps of the whole run.
    max_iter=90000,
    # Base of all random numbers; a rank adds its number. -1 draws one and logs it.
    seed=-1,
    # "cuda", "cuda:1", "cpu"; None = cuda if present, else cpu.
    device=None,
    # Threads of torch on the CPU; None = torch's default.
    num_threads=None,
    # Only deterministic kernels; slower. True warns where torch has none, "strict" refuses.
    deterministic=False,
    # Let cuDNN time its algorithms at the first batches; worth it for one input size.
    cudnn_benchmark=False,
    # Matrix products on CUDA: "" (torch's default), "highest", "high" (TF32) or "medium".
    float32_precision="",
    # Mixed precision: forward passes under autocast in "bf16" (also on the CPU) or "fp16" (with
    # scaled gradients); losses and weights stay in float32.
    amp=dict(enabled=False, dtype="bf16"),
    # Batches per iteration: gradients are averaged over them before the optimizer's step. Equal to
    # one batch so many times as large, except that BatchNorm sees the small ones.
    grad_accum=1,
    # Scale gradients whose norm (of kind norm_type, .inf for the largest element) exceeds max_norm.
    clip_grad=dict(enabled=False, max_norm=1.0, norm_type=2.0),
    # A loss that is infinite or NaN on any rank: "raise" stops all ranks, "skip" leaves the
    # iteration out on all ranks.
    nonfinite="raise",
    # Skipped iterations in a row that stop the run after all.
    nonfinite_limit=10,
    # Exponential moving average of the weights, saved as "ema" in checkpoints;
    # eval: evaluate the average instead of the weights.
    ema=dict(enabled=False, decay=0.999, eval=True),
    # Several processes on GPUs: BatchNorm becomes SyncBatchNorm. On CPUs it never does.
    sync_bn=True,
    # On resume, take learning rate and weight decay from this config, not from the checkpoint.
    resume_override_lr=False,
    # Name the parameters that have no gradient after the first iteration.
    debug=False,
    # Evaluate every so many iterations, and at the end; 0 = only at the end.
    eval_period=5000,
    # Log losses, speed and time left every so many iterations.
    log_period=20,
    # Average losses over the processes every so many iterations; None = 1 for one process, else 20.
    gather_metric_period=None,
    # Write event files for tensorboard where it is installed.
    tensorboard=True,
    # Send losses and scores to Weights & Biases, where the package is installed.
    wandb=dict(enabled=False, project="vss2"),
    # torch.compile of the submodules that the model names in compile_targets; mode and dynamic
    # are torch's, None = its default.
    compile=dict(enabled=False, mode=None, dynamic=None),
    # Save every `period` iterations; all but the newest `max_to_keep` are deleted (None = none).
    checkpointer=dict(period=5000, max_to_keep=20),
    # Keep the weights with the highest value of this metric in model_best.pth, such as
    # "sem_seg/mIoU"; None = no such file.
    best_metric=None,
    # Options of DistributedDataParallel.
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
)
