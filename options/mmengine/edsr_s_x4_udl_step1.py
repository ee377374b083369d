# UDL step 1, EDSR-S x4 on DIV2K with the authors' schedule, as in options/train_udl_step1.yml.
_base_ = ['_base_/runtime.py', '_base_/div2k_x4.py']

model = dict(
    type='UDLRestorer',
    generator=dict(type='EDSRVar', num_in_ch=3, num_out_ch=3, num_feat=64, num_block=16, upscale=4, res_scale=0.1,
                   img_range=255.0, rgb_mean=[0.0, 0.0, 0.0]),
    pixel_loss=dict(type='ESU'))

# bf16: type='AmpOptimWrapper', dtype='bfloat16' (or --amp). For a quarter of the memory: accumulative_counts=4, with
# the changes of batch size, iterations and momentum that docs/scaling.md lists.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.999)))
param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[15000], gamma=0.5)
train_cfg = dict(max_iters=30000, val_interval=5000)
auto_scale_lr = dict(enable=False, base_batch_size=64)  # --auto-scale-lr
compile = False  # True: torch.compile

default_hooks = dict(checkpoint=dict(save_best='Set5/PSNR', rule='greater'))
