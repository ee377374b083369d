# UDL in one run, EDSR-S x4 on DIV2K, as in options/train_udl_one_run.yml: no step 1.
_base_ = ['edsr_s_x4_udl_step1.py']

model = dict(
    generator=dict(detach_features=True),
    pixel_loss=dict(type='JointUDL', warmup=500))

param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[65000], gamma=0.5)
train_cfg = dict(max_iters=130000, val_interval=5000)
