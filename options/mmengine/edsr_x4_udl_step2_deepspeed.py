# EDSR (32 blocks, 256 features) x4, step 2, with the optimizer sharded over the GPUs: DeepSpeed, ZeRO 1. For supported
# versions see docs/scaling.md.
#   torchrun --nproc_per_node=4 -m udl_plugin.integrations.mmengine.launch train \
#       options/mmengine/edsr_x4_udl_step2_deepspeed.py --launcher pytorch
_base_ = ['edsr_s_x4_udl_step2.py']

runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=1))
optim_wrapper = dict(
    _delete_=True, type='DeepSpeedOptimWrapper', optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.999)))

model = dict(
    generator=dict(num_feat=256, num_block=32),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/edsr_x4_udl_step1/iter_30000.pth'))
load_from = None  # DeepSpeed reads only its own checkpoints here; see init_cfg
train_dataloader = dict(batch_size=16)  # on 4 GPUs
custom_hooks = [dict(type='NetworkCheckpointHook')]  # without EMAHook, which copies the complete network
