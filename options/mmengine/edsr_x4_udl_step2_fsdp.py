# EDSR (32 blocks, 256 features) x4, step 2, with the weights of the trained network sharded over the GPUs: FSDP.
#   torchrun --nproc_per_node=4 -m udl_plugin.cli.mm train \
#       options/mmengine/edsr_x4_udl_step2_fsdp.py --launcher pytorch
_base_ = ['edsr_s_x4_udl_step2.py']

runner_type = 'FlexibleRunner'
strategy = dict(
    type='ResumableFSDPStrategy',
    state_dict_cfg='full',  # complete checkpoints, as with one GPU
    model_wrapper=dict(
        use_orig_params=True,
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=1000000)))  # block by block

model = dict(generator=dict(num_feat=256, num_block=32))
load_from = 'work_dirs/edsr_x4_udl_step1/iter_30000.pth'
train_dataloader = dict(batch_size=16)  # on 4 GPUs
custom_hooks = [dict(type='NetworkCheckpointHook')]  # without EMAHook, which copies the complete network
