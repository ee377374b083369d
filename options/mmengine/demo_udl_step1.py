# Step 1 on the demo's photos, with the network, loss and schedule of options/demo/train_udl_step1.yml.
_base_ = ['_base_/runtime.py', '_base_/demo_x2.py']

model = dict(
    type='UDLRestorer',
    generator=dict(type='EDSRVar', num_in_ch=3, num_out_ch=3, num_feat=32, num_block=4, upscale=2),
    pixel_loss=dict(type='ESU'))

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=4e-4, betas=(0.9, 0.999)))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=1200, eta_min=1e-6)
train_cfg = dict(max_iters=1200, val_interval=400)

default_hooks = dict(checkpoint=dict(interval=400, save_best='astronaut/PSNR', rule='greater'))
# no EMAHook: this training is too short for a moving average
custom_hooks = [dict(type='NetworkCheckpointHook'), dict(type='UncertaintyVisualizationHook')]
